from pathlib import Path
from typing import Any

import pytest

from lartpc_ds.config import run_folder as runlog
from lartpc_ds.config import run_record
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.integrity import write_atomically
from lartpc_ds.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "first")
    run.claim()
    return run


def test_a_fresh_run_claims_a_folder_that_is_new_or_empty(tmp_path: Path) -> None:
    for path in (tmp_path / "a" / "new", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        run = RunFolder(path)
        run.claim()
        assert run.logs.is_dir() and run.checkpoints.is_dir()


def test_a_folder_with_anything_in_it_is_left_alone(folder: RunFolder) -> None:
    folder.metrics_file.write_text("kept")
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(UserError, match=r"--run-dir .*first: already exists and is not empty.*--resume"):
        folder.claim()
    assert sorted(folder.path.rglob("*")) == before
    assert folder.metrics_file.read_text() == "kept"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--run-dir"):
        RunFolder(tmp_path / "file").claim()
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "below").claim()
    assert (tmp_path / "file").read_text() == "mine"


def test_only_a_run_folder_passes_for_one(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        folder.require()
    folder.config_file.touch()
    with pytest.raises(UserError, match=r"config\.toml and job\.json"):
        folder.require()
    folder.job_file.touch()
    folder.require()


def test_metrics_come_back_in_order(folder: RunFolder) -> None:
    assert list(folder.metrics()) == []
    lines = [{"step": step, "loss": 0.1 * step} for step in (1, 2, 3)]
    for line in lines:
        folder.append_metrics(line)
    assert list(folder.metrics()) == lines


def test_a_last_line_cut_short_is_left_out_and_rewinding_removes_it(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1})
    with folder.metrics_file.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert list(folder.metrics()) == [{"step": 1}]
    folder.rewind_metrics(5)
    folder.append_metrics({"step": 2})
    assert list(folder.metrics()) == [{"step": 1}, {"step": 2}]


def test_rewinding_drops_what_a_resumed_run_writes_again(folder: RunFolder) -> None:
    lines: list[dict[str, Any]] = [{"step": 1}, {"step": 2, "evaluation": {}}, {"step": 2}, {"step": 3}]
    for line in lines:
        folder.append_metrics(line)
    folder.rewind_metrics(2)
    assert list(folder.metrics()) == lines[:3]
    folder.rewind_metrics(0)
    assert list(folder.metrics()) == []


def test_rewinding_a_run_without_metrics(folder: RunFolder) -> None:
    folder.rewind_metrics(0)
    assert list(folder.metrics()) == []


def test_a_free_name_never_names_a_file_that_exists(folder: RunFolder) -> None:
    names = []
    for _ in range(3):
        path = folder.free_name("predictions", ".csv")
        path.touch()
        names.append(path.name)
    assert names == ["predictions.csv", "predictions-2.csv", "predictions-3.csv"]


def test_an_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"


def config(steps: int) -> RunConfig:
    return RunConfig.parse({"train": {"max_steps": steps}}, "test")


def written(folder: RunFolder, steps: int) -> None:
    folder.write(config(steps), {"steps": steps}, {"max_steps": steps})


def killed_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """The process dies when it has written so many files."""
    left = files

    def write(path: Path, text: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write_atomically(path, text)

    for module in (runlog, run_record):
        monkeypatch.setattr(module, "write_atomically", write)


def test_the_record_knows_the_files_that_shape_numbers(folder: RunFolder) -> None:
    folder.events_file.write_text("events")
    folder.simulated_file.write_bytes(b"pixels")
    written(folder, 5)
    names = {"config.toml", "ds_config.json", "job.json", "events.csv", "simulated.h5"}
    assert folder.verified().files.keys() == names
    folder.events_file.write_text("Events")
    with pytest.raises(UserError, match=r"events\.csv has another content"):
        folder.verified()
    assert folder.verified("config.toml", "job.json").run == folder.record().run


@pytest.mark.parametrize("files", range(6))
def test_a_kill_while_a_resume_replaces_the_configurations_locks_nobody_out(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    written(folder, 5)
    run = folder.record().run
    with monkeypatch.context() as patch:
        killed_after(patch, files)
        try:
            written(folder, 6)
        except KeyboardInterrupt:
            assert files < 5, "a record, three files, a record"
    assert folder.verified().run == run
    with monkeypatch.context() as patch:  # and again, in the same place
        killed_after(patch, files)
        try:
            written(folder, 7)
        except KeyboardInterrupt:
            pass
    folder.verified()
    written(folder, 8)
    record = folder.verified()
    assert record.run == run and not record.replaced
    folder.config_file.write_text("[train]\nmax_steps = 5\n")
    with pytest.raises(UserError, match=r"config\.toml"):
        folder.verified()


@pytest.mark.parametrize("files", range(4))
def test_a_kill_while_a_run_is_prepared_leaves_no_job(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    killed_after(monkeypatch, files)
    with pytest.raises(KeyboardInterrupt):
        written(folder, 5)
    assert not folder.job_file.exists(), "by which a batch job tells that there is nothing to resume"
    with pytest.raises(UserError, match=r"not a run folder|is missing"):
        folder.verified()


@pytest.mark.parametrize("garbage", [b"\x00\xff\n", b"{\n", b"[]\n", b"\n", b'{"loss": 1.0}\n', b'{"step": "2"}\n'])
def test_garbled_metrics_are_left_out_and_rewinding_removes_them(folder: RunFolder, garbage: bytes) -> None:
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    folder.append_metrics(lines[0])
    with folder.metrics_file.open("ab") as stream:
        stream.write(garbage)
    folder.append_metrics(lines[1])
    assert list(folder.metrics()) == lines and folder.garbled_metrics() == [2]
    folder.rewind_metrics(2)
    assert list(folder.metrics()) == lines and folder.garbled_metrics() == []
