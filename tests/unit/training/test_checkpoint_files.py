"""Which checkpoint a run goes on from, whatever became of its files; small stand-ins here, not real ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lartpc_ds.data.integrity import FileRecord
from lartpc_ds.errors import UserError
from lartpc_ds.training import checkpoint_files
from lartpc_ds.training.checkpoint_files import faults, go_back, latest, link, newest_whole, remove_old, resolve

RUN = "this run"
NAMES = [
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "rank0.pt",
    "rank1.pt",
    "model.pt",
]


def write(folder: Path, step: int, run: str = RUN, *, best: bool = False) -> Path:
    path = checkpoint_files.step_folder(folder, step)
    path.mkdir(parents=True)
    for name in NAMES:
        (path / name).write_bytes(f"{run} {step} {name}".encode() * 20)
    records = {name: FileRecord.of(path / name) for name in NAMES}
    checkpoint_files.write_manifest(path, run, records, {"progress": {"step": step}, "best": best})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        write(folder, step)
    link(folder / "last", "step_0000002")
    link(folder / "best", "step_0000001")
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "text": lambda path: path.write_text("run,event,charge\n" * 10),
    "of another step": lambda path: shutil.copyfile(path.parent.parent / "step_0000001" / path.name, path),
}
CASES = [(name, damage) for name in [*NAMES, "manifest.json"] for damage in DAMAGES]


@pytest.mark.parametrize(("name", "damage"), CASES, ids=[f"{name}, {damage}" for name, damage in CASES])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder: Path, name: str, damage: str) -> None:
    newest = folder / "step_0000002"
    DAMAGES[damage](newest / name)
    start, damaged = newest_whole(folder, RUN)
    assert start == folder / "step_0000001"
    (told,) = damaged[newest]
    assert told.startswith(name), told
    go_back(folder / "step_0000001", list(damaged))
    assert latest(folder) == start and (folder / "last").resolve() == start
    assert newest_whole(folder, RUN) == (start, {})
    assert (folder / "step_0000002.damaged").is_dir()


@pytest.mark.parametrize("name", ["zero_pp_rank_{}_mp_rank_00_optim_states.pt", "rank{}.pt"])
def test_files_of_two_ranks_that_were_swapped_are_both_named(folder: Path, name: str) -> None:
    newest = folder / "step_0000002"
    swap(newest / name.format(0), newest / name.format(1))
    told = newest_whole(folder, RUN)[1][newest]
    assert [one.split()[0] for one in told] == [name.format(0), name.format(1)]


def test_a_whole_checkpoint_under_the_name_of_another_step_is_none(folder: Path) -> None:
    shutil.rmtree(folder / "step_0000002")
    shutil.copytree(folder / "step_0000001", folder / "step_0000002")
    assert newest_whole(folder, RUN)[1] == {folder / "step_0000002": ["manifest.json is of step 1"]}


def test_a_whole_checkpoint_of_another_run_is_none(folder: Path) -> None:
    write(folder, 3, "another run")
    start, damaged = newest_whole(folder, RUN)
    assert start == folder / "step_0000002"
    assert list(damaged.values()) == [["manifest.json is of another run"]]


def test_a_file_too_many_is_named_because_deepspeed_counts_files(folder: Path) -> None:
    shutil.copyfile(folder / "step_0000002" / NAMES[0], folder / "step_0000002" / "mp_rank_01_model_states.pt")
    assert faults(folder / "step_0000002", RUN) == ["mp_rank_01_model_states.pt is not part of it"]
    assert faults(folder / "step_0000002", RUN, "model.pt") == []


def test_where_none_is_whole_every_one_is_named_and_nothing_changes(folder: Path) -> None:
    (folder / "step_0000001" / "rank1.pt").unlink()
    flip(folder / "step_0000002" / "model.pt")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"step_0000002: model\.pt has another.*; step_0000001: rank1\.pt is missing"):
        newest_whole(folder, RUN)
    assert sorted(folder.rglob("*")) == before


def test_a_run_without_checkpoints_starts_again_but_a_lost_folder_is_named(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    assert newest_whole(folder, RUN) == (None, {})
    folder.rmdir()
    with pytest.raises(UserError, match=r"checkpoints is missing"):
        newest_whole(folder, RUN)


def test_a_best_that_is_set_aside_has_no_link(folder: Path) -> None:
    link(folder / "best", "step_0000002")
    go_back(folder / "step_0000001", [folder / "step_0000002"])
    assert not (folder / "best").is_symlink()
    with pytest.raises(UserError, match="there are: last, step_0000001"):
        resolve(folder, "best")


class TestAKill:
    """Leaves a folder from which the run goes on, wherever it comes."""

    def test_while_a_checkpoint_is_written(self, folder: Path) -> None:
        write(folder, 3).rename(folder / "step_0000003.partial")
        (folder / "step_0000003.partial" / "manifest.json").unlink()
        assert newest_whole(folder, RUN) == (folder / "step_0000002", {})

    def test_before_the_links_point_to_the_new_one(self, folder: Path) -> None:
        newest = write(folder, 3, best=True)
        assert newest_whole(folder, RUN) == (newest, {})
        go_back(newest, [])
        assert (folder / "last").resolve() == (folder / "best").resolve() == newest

    def test_while_an_old_one_is_removed(self, folder: Path) -> None:
        write(folder, 3)
        (folder / "step_0000001" / "manifest.json").unlink()
        assert newest_whole(folder, RUN) == (folder / "step_0000003", {})

    def test_while_damaged_ones_are_set_aside(self, folder: Path) -> None:
        newest = write(folder, 3)
        flip(newest / "rank0.pt")
        flip(folder / "step_0000002" / "rank0.pt")
        newest.rename(newest.with_name("step_0000003.damaged"))
        start, damaged = newest_whole(folder, RUN)
        assert start == folder / "step_0000001" and list(damaged) == [folder / "step_0000002"]


def test_the_newest_the_one_before_it_and_the_best_are_kept(folder: Path) -> None:
    for step in (3, 4, 5):
        write(folder, step)
        link(folder / "last", f"step_{step:07d}")
        remove_old(folder)
    there = sorted(path.name for path in folder.iterdir())
    assert there == ["best", "last", "step_0000001", "step_0000004", "step_0000005"]


def test_weights_beside_a_manifest_are_compared_with_it(folder: Path, tmp_path: Path) -> None:
    weights = folder / "step_0000002" / "model.pt"
    checkpoint_files.check_weights_file(weights, "model.weights")
    flip(weights)
    with pytest.raises(UserError, match=r"model\.weights = .*model\.pt has another content.*copy the file elsewhere"):
        checkpoint_files.check_weights_file(weights, "model.weights")
    shutil.copyfile(weights, tmp_path / "mine.pt")
    checkpoint_files.check_weights_file(tmp_path / "mine.pt", "model.weights")
