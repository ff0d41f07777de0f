"""What becomes of a real run of two ranks under ZeRO-2 when one of its files is damaged: a sentence, or one step back.

The run is made once; each case damages a copy of its folder and asks the functions that the commands are made of.
"""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.evaluate import evaluate_checkpoint
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.jobs.site_checks import HostOptions
from lartpc_ds.layout import Layout
from lartpc_ds.report.summary import print_summary
from lartpc_ds.training import session
from lartpc_ds.training.checkpoint_files import go_back, latest, newest_whole
from tests.ranks import run_ranks
from tests.small_runs import write_events, write_run_toml

RUN_FILES = ["config.toml", "ds_config.json", "job.json", "events.csv", "simulated.h5", "files.json"]
SHARDS = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
CHECKPOINT_FILES = ["mp_rank_00_model_states.pt", *SHARDS, "rank0.pt", "rank1.pt", "model.pt", "manifest.json"]
NEWEST, BEFORE = "step_0000003", "step_0000002"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after three of ten steps, with the events that it simulated."""
    folder = RunFolder(tmp_path_factory.mktemp("stopped") / "run")
    folder.claim()
    toml = write_run_toml(folder.path.with_name("run.toml"), write_events(folder.simulated_file, 24))
    config, ds = recipes.load(str(toml), ["train.max_steps=10", "train.checkpoint_every=1"])
    prepare_run(config, ds, Layout(data=2), folder, Console(quiet=True))
    assert run_ranks(2, train_three_steps, folder.path) == [True, True]
    return folder.path


def train_three_steps(path: Path) -> bool:
    asked = iter([False, False, True])
    return session.train(RunFolder(path), resume=False, stop_requested=lambda: next(asked))


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Iterator[RunFolder]:
    yield RunFolder(shutil.copytree(stopped, tmp_path / "run", symlinks=True))


def goes_on(run: RunFolder) -> tuple[Path | None, dict[Path, list[str]]]:
    """As `train --resume` begins."""
    return newest_whole(run.checkpoints, run.verified().run)


def report(run: RunFolder) -> str:
    stream = io.StringIO()
    print_summary(Console(file=stream, width=160, color_system=None), [run])
    return stream.getvalue()


def refusal(run: RunFolder) -> str:
    """Of `evaluate`."""
    with pytest.raises(UserError) as refused:
        evaluate_checkpoint(run.path, [], "last", HostOptions(), Console(quiet=True))
    return str(refused.value)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
}


def cases(names: list[str], damages: list[str]) -> pytest.MarkDecorator:
    pairs = [(name, damage) for name in names for damage in damages]
    return pytest.mark.parametrize(("name", "damage"), pairs, ids=[f"{name}, {damage}" for name, damage in pairs])


def test_every_file_of_the_run_is_in_a_record(run: RunFolder) -> None:
    assert goes_on(run) == (run.checkpoints / NEWEST, {})
    assert sorted([*run.record().files, "files.json"]) == sorted(RUN_FILES)
    assert sorted(path.name for path in (run.checkpoints / NEWEST).iterdir()) == sorted(CHECKPOINT_FILES)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last", BEFORE, NEWEST]
    assert "left out" not in report(run)


@cases(RUN_FILES, list(DAMAGES))
def test_a_damaged_run_folder_is_refused_and_reported(run: RunFolder, name: str, damage: str) -> None:
    DAMAGES[damage](run.path / name)
    with pytest.raises(UserError, match=rf"run: {name} .*Restore it from a copy"):
        goes_on(run)
    assert f"run: {name} " in refusal(run)
    text = report(run)
    assert "3 of " in text
    if name in ("config.toml", "job.json", "files.json"):
        assert f"left out of run: {name} " in text


@cases(CHECKPOINT_FILES, list(DAMAGES))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run: RunFolder, name: str, damage: str) -> None:
    DAMAGES[damage](run.checkpoints / NEWEST / name)
    start, damaged = goes_on(run)
    assert start == run.checkpoints / BEFORE
    assert [told.split()[0] for told in damaged[run.checkpoints / NEWEST]] == [name]
    if name in ("model.pt", "manifest.json"):
        said = refusal(run)
        assert name in said or "'last': not in" in said
        assert BEFORE in said
    assert "left out" not in report(run)


@pytest.mark.parametrize("name", [name for name in CHECKPOINT_FILES if name != "manifest.json"])
def test_a_file_of_another_step_is_found(run: RunFolder, name: str) -> None:
    shutil.copyfile(run.checkpoints / BEFORE / name, run.checkpoints / NEWEST / name)
    start, damaged = goes_on(run)
    assert start == run.checkpoints / BEFORE
    assert [told.split()[0] for told in damaged[run.checkpoints / NEWEST]] == [name]


@pytest.mark.parametrize("pair", [SHARDS, ["rank0.pt", "rank1.pt"]], ids=["shards", "states of ranks"])
def test_swapped_files_are_found(run: RunFolder, pair: list[str]) -> None:
    one, two = (run.checkpoints / NEWEST / name for name in pair)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    start, damaged = goes_on(run)
    assert start == run.checkpoints / BEFORE
    assert [told.split()[0] for told in damaged[run.checkpoints / NEWEST]] == pair


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("events.csv", "electron", "muon"),
        ("events.csv", "validation", "train"),
        ("job.json", '"gamma"', '"axion"'),
        ("job.json", '"max_steps": 10', '"max_steps": 4'),
        ("config.toml", "seed = ", "seed = 1"),
        ("ds_config.json", '"lr": ', '"lr": 1'),
    ],
)
def test_a_change_that_reads_well_is_found(run: RunFolder, name: str, old: str, new: str) -> None:
    path = run.path / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=f"run: {name} "):
        goes_on(run)


def test_other_events_of_the_same_size_are_found(run: RunFolder) -> None:
    written = run.simulated_file.stat().st_size
    run.simulated_file.write_bytes(bytes(written))
    with pytest.raises(UserError, match=r"simulated\.h5 has another content"):
        goes_on(run)


def test_a_folder_of_an_earlier_version_is_told_from_a_damaged_one_by_nobody(run: RunFolder) -> None:
    run.record_file.unlink()
    with pytest.raises(UserError, match=r"files\.json is missing \(lost, or never written: an earlier version"):
        goes_on(run)


def test_garbled_metrics_are_left_out_and_said(run: RunFolder) -> None:
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    garbage = [b"\x00\xff\x00\n", b'{"step": 2}\n', b'{"step": 2, "evaluation": {}}\n', b"[1]\n"]
    run.metrics_file.write_bytes(b"".join([lines[0], *garbage, *lines[1:]]))
    text = report(run)
    assert "left out of run: metrics.jsonl: line 2, 3, 4, 5 is garbled" in text and "3 of 10" in text
    run.rewind_metrics(2)
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2]


def test_the_run_goes_on_from_the_one_before_to_the_same_weights(run: RunFolder, stopped: Path) -> None:
    flip(run.checkpoints / NEWEST / SHARDS[1])
    start, damaged = goes_on(run)
    assert start is not None
    go_back(start, list(damaged))
    assert latest(run.checkpoints) == start
    assert run_ranks(2, train_one_step, run.path) == [True, True]
    assert goes_on(run) == (run.checkpoints / NEWEST, {})
    for name in ("model.pt", "rank0.pt", "rank1.pt"):
        assert (run.checkpoints / NEWEST / name).read_bytes() == (stopped / "checkpoints" / NEWEST / name).read_bytes()


def train_one_step(path: Path) -> bool:
    return session.train(RunFolder(path), resume=True, stop_requested=lambda: True)
