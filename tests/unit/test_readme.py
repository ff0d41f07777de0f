import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tour_names_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^#+ Read it in this order\n(.*?)(?=^#+ |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section 'Read it in this order'"
    tour = re.findall(r"^\d+\. `([^`]+)`", section[1], re.MULTILINE)
    assert len(tour) >= 6, f"the tour of README.md names {len(tour)} files; a reader needs at least 6"
    assert not [path for path in tour if not (ROOT / path).exists()]
