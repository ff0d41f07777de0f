import os
import threading
from pathlib import Path

import pytest

from lartpc_ds.data import staging
from lartpc_ds.data.staging import stage
from lartpc_ds.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "shared" / folder / "events.h5" for folder in ("b", "a")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes([number]) * 1000)
        os.utime(path, (1_600_000_000, 1_600_000_000 + number))
    return paths


def test_copies_sort_as_their_originals(files: list[Path], tmp_path: Path) -> None:
    copies = stage([str(tmp_path / "shared/*/events.h5")], str(tmp_path / "disk"))
    assert list(copies) == sorted(copies)
    assert [Path(copy).read_bytes()[0] for copy in copies] == [1, 0]  # a, then b
    assert all(Path(copy).is_relative_to(tmp_path / "disk") for copy in copies)


def test_a_file_is_copied_once_until_it_changes(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    copy2 = staging.shutil.copy2
    monkeypatch.setattr(staging.shutil, "copy2", lambda *names: copied.append(names[0]) or copy2(*names))
    patterns = [str(path) for path in files]
    ranks = [threading.Thread(target=stage, args=(patterns, str(tmp_path / "disk"))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert sorted(copied) == sorted(files)
    files[0].write_bytes(b"new" * 500)
    copies = stage(patterns, str(tmp_path / "disk"))
    assert len(copied) == 3 and Path(copies[1]).read_bytes() == b"new" * 500


def test_variables_are_those_of_the_host(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_OF_THIS_HOST", str(tmp_path / "scratch"))
    (copy,) = stage([str(files[0])], "$SCRATCH_OF_THIS_HOST/events")
    assert Path(copy).is_relative_to(tmp_path / "scratch/events")
    monkeypatch.delenv("SCRATCH_OF_THIS_HOST")
    with pytest.raises(UserError, match=r"launch\.stage_to = '\$SCRATCH_OF_THIS_HOST.*not set on this host"):
        stage([str(files[0])], "$SCRATCH_OF_THIS_HOST/events")


def test_a_folder_that_cannot_hold_them_is_named(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"launch\.stage_to = .*taken.*give another folder"):
        stage([str(files[0])], str(tmp_path / "taken"))
