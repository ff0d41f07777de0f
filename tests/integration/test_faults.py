"""What goes wrong in a running job: stop requests, killed processes, failing ranks, bad events. Nothing may be left."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import h5py
import pytest

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.training import session
from tests.integration.cli import Job, overrides, run_cli, started, steps, wait_until
from tests.ranks import run_ranks
from tests.small_runs import prepared, write_events, write_run_toml

LONG = "train.max_steps=1000000"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 40))
    return tmp_path


@pytest.fixture
def users_work(work: Path) -> Path:
    """The same, for a user's model: the width is the user's affair."""
    toml = work / "run.toml"
    toml.write_text(toml.read_text().replace("width = 4\n", ""))
    return work


def training(*settings: str, ranks: int, run_dir: str = "run") -> list[str]:
    return ["train", "run.toml", *overrides(settings), "--devices", str(ranks), "--run-dir", run_dir]


def assert_nothing_left(job: Job) -> None:
    assert [process.cmdline() for process in job.processes()] == []


def test_a_stop_request_saves_and_the_run_resumes(work: Path) -> None:
    with started(work, *training(LONG, ranks=2)) as job:
        job.wait_for_step(2)
        job.process.send_signal(signal.SIGTERM)
        assert_stopped_and_saved(job)
    stopped_at = steps(job.folder)[-1]
    resumed = run_cli(work, *training(f"train.max_steps={stopped_at + 3}", ranks=2), "--resume")
    assert resumed.code == 0, resumed.out + resumed.err
    assert job.folder.done_file.exists()
    assert steps(job.folder) == list(range(1, stopped_at + 4))


def test_other_signals_stop_as_well(work: Path) -> None:
    with ExitStack() as stack:
        jobs = {
            number: stack.enter_context(
                started(work, *training(LONG, ranks=1, run_dir=number.name), run_dir=number.name)
            )
            for number in (signal.SIGUSR1, signal.SIGINT)
        }
        for number, job in jobs.items():
            job.wait_for_step(2)
            job.process.send_signal(number)
        for job in jobs.values():
            assert_stopped_and_saved(job)


@pytest.mark.parametrize(
    ("number", "first", "settings"),
    [
        (signal.SIGUSR1, "the command line", ()),
        (signal.SIGTERM, "the launcher", ("data.workers=1", "train.accumulate=2")),
    ],
    ids=["command-line-first", "launcher-first-with-readers"],
)
def test_a_stop_request_to_every_process_saves_too(
    work: Path, number: signal.Signals, first: str, settings: tuple[str, ...]
) -> None:
    """Batch systems signal the whole job, launcher, ranks and readers included, in any order."""
    with started(work, *training(LONG, *settings, ranks=2)) as job:
        job.wait_for_step(2)
        processes = sorted(job.processes(), key=lambda process: process.pid, reverse=first == "the launcher")
        for process in processes:
            process.send_signal(number)
        assert_stopped_and_saved(job)


def assert_stopped_and_saved(job: Job) -> None:
    finished = job.finish()
    assert_nothing_left(job)
    assert finished.code == 75, finished.out + finished.err
    assert finished.err == "" and "--resume" in finished.out
    assert (job.folder.checkpoints / "last").resolve().name == f"step_{steps(job.folder)[-1]:07d}"
    assert not job.folder.done_file.exists()


def test_a_second_signal_stops_at_once(users_work: Path) -> None:
    settings = [LONG, 'model.target="tests.integration.users_models:hangs_on_rank_0"', "train.checkpoint_every=1"]
    with started(users_work, *training(*settings, ranks=1), environment=importable()) as job:
        job.wait_for_step(2)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.stdout is not None
        while "a second signal stops at once" not in job.process.stdout.readline():
            assert job.process.poll() is None
        job.process.send_signal(signal.SIGINT)
        finished = job.finish(timeout_seconds=30)
        assert_nothing_left(job)
    assert finished.code == 75, finished.out + finished.err  # there is a checkpoint to continue from
    assert finished.err == "" and not job.folder.done_file.exists()


def kill_rank_1(job: Job) -> None:
    ranks = json.loads((job.folder.logs / "ranks.json").read_text())
    os.kill(ranks["1"]["pid"], signal.SIGKILL)


def kill_launcher(job: Job) -> None:
    (launcher,) = job.commands("deepspeed.launcher.launch")
    launcher.kill()


@pytest.mark.parametrize(("kill", "named"), [(kill_rank_1, "rank 1"), (kill_launcher, "launcher")])
def test_a_killed_process_ends_the_job(work: Path, kill: Callable[[Job], None], named: str) -> None:
    with started(work, *training(LONG, ranks=2)) as job:
        job.wait_for_step(2)
        kill(job)
        finished = job.finish(timeout_seconds=30)
        assert_nothing_left(job)
    assert finished.code == 1
    assert "killed" in finished.out + finished.err and named in finished.out + finished.err
    assert "Traceback" not in finished.out + finished.err
    assert not job.folder.done_file.exists()


def test_a_killed_command_line_takes_its_job_along(work: Path) -> None:
    with started(work, *training(LONG, "data.workers=1", ranks=1)) as job:
        job.wait_for_step(2)
        assert len(job.processes()) >= 4  # command line, launcher, rank and its reader
        job.process.kill()
        job.process.communicate()
        wait_until(lambda: not job.processes(), "the end of launcher, rank and reader", timeout_seconds=30)
    assert not job.folder.done_file.exists()


def test_the_traceback_of_the_rank_that_failed_first_is_shown(users_work: Path) -> None:
    settings = [LONG, 'model.target="tests.integration.users_models:raises_on_rank_1"']
    with started(users_work, *training(*settings, ranks=2), environment=importable()) as job:
        finished = job.finish()
        assert_nothing_left(job)
    assert finished.code == 1
    shown = finished.out + finished.err
    assert "ZeroDivisionError: the user's own mistake" in shown and "rank 1" in shown
    assert shown.count("Traceback") == 1
    assert "closed by peer" not in shown
    assert steps(job.folder) == [1, 2] and not job.folder.done_file.exists()


def test_a_bad_event_is_named(work: Path) -> None:
    with h5py.File(work / "events.h5", "r+") as file:
        voxels, extents = (file[f"Data/sparse2d_wire_group/{name}"] for name in ("voxels", "voxel_extents"))
        bad = int(extents["first"][2 * 7 + 1])  # the second plane of event 7
        row = voxels[bad]
        row["value"] = float("nan")
        voxels[bad] = row
    settings = ["train.max_steps=20", "data.split={train=1.0,validation=0.0}"]
    plain = training(*settings, ranks=2, run_dir="plain")
    with_readers = training(*settings, "data.workers=1", ranks=1, run_dir="readers")
    with started(work, *plain, run_dir="plain") as first, started(work, *with_readers, run_dir="readers") as second:
        for job in (first, second):
            assert_bad_event_named(job, work / "events.h5")


def assert_bad_event_named(job: Job, file: Path) -> None:
    finished = job.finish()
    assert_nothing_left(job)
    shown = finished.out + finished.err
    assert finished.code == 2, shown
    for word in (str(file), "sparse2d_wire_group", "event 7, plane 1", "nan"):
        assert word in shown
    assert "Traceback" not in shown
    assert not job.folder.done_file.exists()


def test_a_running_run_may_be_evaluated_but_not_started_again(work: Path) -> None:
    run = prepared(work / "run", work / "run.toml")
    run_ranks(1, train_two_steps, run.path)
    with started(work, *training(LONG, ranks=1), "--resume") as job:
        job.wait_for_step(4)
        evaluated = run_cli(work, "evaluate", "run")
        assert evaluated.code == 0, evaluated.out + evaluated.err
        again = run_cli(work, *training(LONG, ranks=1), "--resume", timeout_seconds=60)
        assert again.code == 2 and "running" in again.err, again.out + again.err
        job.process.send_signal(signal.SIGTERM)
        assert_stopped_and_saved(job)
    done = steps(run)
    assert done == list(range(1, len(done) + 1))


def train_two_steps(path: Path) -> None:
    asked = itertools.count(1)
    session.train(RunFolder(path), resume=False, stop_requested=lambda: next(asked) == 2)


def importable() -> dict[str, str]:
    """The tests themselves as packages that a user's `model.target` can name."""
    return {"PYTHONPATH": str(Path(__file__).parents[2])}
