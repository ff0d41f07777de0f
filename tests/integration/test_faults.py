"""What goes wrong in a running job: stop requests, killed processes, failing ranks, bad events. Nothing may be left."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from lartpc_ds.failures import rank_pids
from tests.integration.cli import Job, overrides, run_cli, started, steps, wait_until
from tests.small_runs import write_events, write_run_toml

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


def training(*settings: str, ranks: int) -> list[str]:
    return ["train", "run.toml", *overrides(settings), "--devices", str(ranks), "--run-dir", "run"]


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


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_other_signals_stop_as_well(work: Path, number: signal.Signals) -> None:
    with started(work, *training(LONG, ranks=1)) as job:
        job.wait_for_step(2)
        job.process.send_signal(number)
        assert_stopped_and_saved(job)


def test_a_stop_request_to_every_process_saves_too(work: Path) -> None:
    """Batch systems signal the whole job, launcher and ranks included."""
    with started(work, *training(LONG, ranks=2)) as job:
        job.wait_for_step(2)
        for process in job.processes():
            process.send_signal(signal.SIGTERM)
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
    os.kill(rank_pids(job.folder.logs)[1], signal.SIGKILL)


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
        assert len(job.processes()) >= 5  # command line, runner, launcher, rank and its reader
        job.process.kill()
        job.process.communicate()
        wait_until(lambda: not job.processes(), "the end of runner, launcher, rank and reader", timeout_seconds=30)
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


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (1, 1)])
def test_a_bad_event_is_named(work: Path, ranks: int, workers: int) -> None:
    with h5py.File(work / "events.h5", "r+") as file:
        voxels, extents = (file[f"Data/sparse2d_wire_group/{name}"] for name in ("voxels", "voxel_extents"))
        bad = int(extents["first"][2 * 7 + 1])  # the second plane of event 7
        row = voxels[bad]
        row["value"] = float("nan")
        voxels[bad] = row
    settings = ["train.max_steps=20", "data.split={train=1.0,validation=0.0}", f"data.workers={workers}"]
    with started(work, *training(*settings, ranks=ranks)) as job:
        finished = job.finish()
        assert_nothing_left(job)
    assert finished.code == 2, finished.out + finished.err
    shown = finished.out + finished.err
    for word in (str(work / "events.h5"), "sparse2d_wire_group", "event 7, plane 1", "nan"):
        assert word in shown
    assert "Traceback" not in shown
    assert not job.folder.done_file.exists()


def importable() -> dict[str, str]:
    """The tests themselves as packages that a user's `model.target` can name."""
    return {"PYTHONPATH": str(Path(__file__).parents[2])}
