"""The documentation's list of every file is the package's."""

from tests.rooms import DESIGN, HEADING, section


def test_design_lists_every_file_as_it_is() -> None:
    written = DESIGN.read_text().split(HEADING)
    assert len(written) == 2, "docs/design.md has one section of every file, and it is the last"
    assert written[1] == section(), "run `python -m tests.rooms`"
