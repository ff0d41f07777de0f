"""The main job on real separate hosts, and what goes wrong with them while it runs."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.training.control_point import SILENCE_SECONDS
from tests.integration.cli import overrides, run_cli, steps, wait_until
from tests.integration.hosts import Host, cluster, kill, reset, send_signal
from tests.integration.slurm_cluster import job_state, slurm, submit
from tests.small_runs import write_events, write_run_toml

pytestmark = pytest.mark.hosts

SGD = (
    "train.max_steps=3",
    'train.ds_config="zero2_fp32"',
    'ds.optimizer={type="SGD",params={lr=0.01,momentum=0.9}}',
    "ds.zero_allow_untested_optimizer=true",
    "data.split={train=1.0,validation=0.0}",
)
STAGE_1 = "ds.zero_optimization.stage=1"
LONG = "train.max_steps=1000000"
ENDS_WITHIN_SECONDS = SILENCE_SECONDS + 15
ENVIRONMENT = {
    "COLUMNS": "200",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multinode")
    write_run_toml(folder / "run.toml", write_events(folder / "events.h5", 40))
    (folder / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    with cluster(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture
def hosts(made: dict[str, Host]) -> Iterator[dict[str, Host]]:
    yield made
    reset(made)


def training(run_dir: str, *settings: str, launcher: str = "pdsh") -> list[str]:
    command = [sys.executable, "-m", "lartpc_ds", "train", "run.toml", *overrides(settings)]
    return [*command, "--hostfile", "hosts", "--launcher", launcher, "--run-dir", run_dir]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in RunFolder(folder).metrics() if "loss" in line]


def placed(folder: Path) -> list[str]:
    places = json.loads((folder / "logs/ranks.json").read_text())
    return [places[rank]["host"] for rank in ("0", "1")]


def assert_nothing_left(hosts: dict[str, Host], within_seconds: float = 5) -> None:
    def left() -> list[str]:
        return [" ".join(process.info["cmdline"] or ()) for host in hosts.values() for process in host.processes()]

    deadline = (
        time.monotonic() + within_seconds
    )  # DeepSpeed's launcher on the other host looks at its ranks once a second
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []


LAYOUTS = {
    "data": (),
    "tiles": ("layout.rows=2",),
    "pipe": ("layout.pipe=2", STAGE_1, "train.accumulate=2"),
}


@pytest.fixture(scope="module")
def reference(work: Path) -> Callable[[str], list[float]]:
    """Losses of two ranks on one host."""
    found: dict[str, list[float]] = {}

    def of(layout: str) -> list[float]:
        if layout not in found:
            arguments = ["train", "run.toml", *overrides([*SGD, *LAYOUTS[layout]])]
            finished = run_cli(
                work, *arguments, "--devices", "2", "--run-dir", f"one-{layout}", environment=ENVIRONMENT
            )
            assert finished.code == 0, finished.err
            found[layout] = losses(work / f"one-{layout}")
        return found[layout]

    return of


@pytest.mark.parametrize(("launcher", "layout"), [("pdsh", "data"), ("pdsh", "pipe"), ("openmpi", "tiles")])
def test_two_hosts_train_as_one_does(
    hosts: dict[str, Host], work: Path, reference: Callable[[str], list[float]], launcher: str, layout: str
) -> None:
    """Each layout and each launcher once; Slurm has a test of its own."""
    run_dir = f"{launcher}-{layout}"
    own = ('launch={stage_to="$MY_DISK",environment={MY_DISK="/run/staged"}}',) if layout == "data" else ()
    command = training(run_dir, *SGD, *LAYOUTS[layout], *own, launcher=launcher)
    finished = hosts["alpha"].run(command, work, ENVIRONMENT, timeout_seconds=300)
    assert finished.code == 0, finished.out + finished.err
    assert_nothing_left(hosts)
    assert losses(work / run_dir) == pytest.approx(reference(layout), rel=1e-6)
    assert placed(work / run_dir) == ["alpha", "beta"]
    crosses = "halos of 1 pair(s) of neighbouring tiles cross the network, alpha - beta"
    assert (crosses in finished.out) == (layout == "tiles")
    if own:
        assert_copied_to_their_own_disks(hosts, work / "events.h5")


def assert_copied_to_their_own_disks(hosts: dict[str, Host], file: Path) -> None:
    """Each host has a `/run` of its own."""
    for host in hosts.values():
        (copy,) = host.check("find", "/run/staged", "-name", f"*-{file.name}").splitlines()
        assert int(host.check("stat", "--format=%s", copy)) == file.stat().st_size


def test_two_hosts_evaluate_as_one_does(
    hosts: dict[str, Host], work: Path, reference: Callable[[str], list[float]]
) -> None:
    assert reference("data")  # its run is evaluated
    evaluate = ["evaluate", "one-data", "--files", "events.h5"]
    assert run_cli(work, *evaluate, "--devices", "1", environment=ENVIRONMENT).code == 0
    command = [sys.executable, "-m", "lartpc_ds", *evaluate, "--hostfile", "hosts", "--launcher", "pdsh"]
    spread = hosts["alpha"].run(command, work, ENVIRONMENT, timeout_seconds=300)
    assert spread.code == 0, spread.out + spread.err
    assert_nothing_left(hosts)
    one, two = (json.loads(path.read_text()) for path in sorted((work / "one-data").glob("evaluation-*.json")))
    assert one["confusion"] == two["confusion"] and sum(map(sum, one["confusion"])) == 40
    places = json.loads((work / "one-data/logs/predictions-step_0000003-2/ranks.json").read_text())
    assert [places[rank]["host"] for rank in ("0", "1")] == ["alpha", "beta"]


def test_slurm_trains_two_hosts_as_one_does(
    hosts: dict[str, Host], work: Path, reference: Callable[[str], list[float]]
) -> None:
    """`sbatch` of the script that `submit` writes: hostfile from the job's variables, preflight and ranks over srun."""
    alpha = hosts["alpha"]
    prologue = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    batch = ("batch.nodes=2", "batch.ranks_per_node=1", f'batch.prologue=["export {prologue}"]')
    written = run_cli(work, "submit", "run.toml", "--system", "slurm", *overrides([*SGD, *batch]), "--run-dir", "slurm")
    assert written.code == 0, written.err
    with slurm(hosts):
        job = submit(alpha, work / "run.slurm.sh")
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: job_state(alpha, job) in ends, "the end of the job", timeout_seconds=300)
        (log,) = work.glob("*.log")
        assert job_state(alpha, job) == "COMPLETED", log.read_text()
        assert_nothing_left(hosts)
    assert losses(work / "slurm") == pytest.approx(reference("data"), rel=1e-6)
    assert placed(work / "slurm") == ["alpha", "beta"]


HARMED = "harmed"
EVERY_STEP = "train.checkpoint_every=1"


def saved_step(work: Path) -> int:
    """The step of the last checkpoint of the run that is harmed, 0 if there is none."""
    manifest = work / HARMED / "checkpoints/last/manifest.json"
    return int(json.loads(manifest.read_text())["progress"]["step"]) if manifest.exists() else 0


def assert_no_gap(work: Path) -> None:
    done = steps(RunFolder(work / HARMED))
    assert done == list(range(1, len(done) + 1))


@contextmanager
def running(hosts: dict[str, Host], work: Path) -> Iterator["subprocess.Popen[str]"]:
    """A long job, two checkpoints after its start.

    All tests that harm a job harm this one run: each test resumes what the one before it has left, without a gap, and
    the last finishes it.
    """
    saved = saved_step(work)
    if not saved:
        shutil.rmtree(work / HARMED, ignore_errors=True)
    command = [*training(HARMED, *SGD, LONG, EVERY_STEP), *(["--resume"] if saved else [])]
    with hosts["alpha"].started(command, work, ENVIRONMENT) as process:

        def at_work() -> bool:
            assert process.poll() is None, process.communicate()
            return saved_step(work) >= saved + 2

        wait_until(at_work, f"two more steps of {HARMED}")
        assert_no_gap(work)
        yield process


def cut_the_link(hosts: dict[str, Host], process: "subprocess.Popen[str]") -> None:
    hosts["beta"].link("down")


def kill_the_rank(hosts: dict[str, Host], process: "subprocess.Popen[str]") -> None:
    rank = max(hosts["beta"].processes("lartpc_ds.training.worker"), key=lambda found: found.memory_info().rss)
    kill(rank)


def kill_the_launcher_there(hosts: dict[str, Host], process: "subprocess.Popen[str]") -> None:
    for found in hosts["beta"].processes("deepspeed.launcher.launch"):
        kill(found)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut_the_link, "rank 1 .* on beta.* no sign of life for 20 s"),
        (kill_the_rank, "rank 1 .* on beta.* was killed"),
        (kill_the_launcher_there, "rank 1 .* on beta.* its launcher was killed"),
    ],
)
def test_what_happens_to_one_host_ends_the_job_on_all(
    hosts: dict[str, Host], work: Path, harm: Callable[[dict[str, Host], "subprocess.Popen[str]"], None], told: str
) -> None:
    with running(hosts, work) as process:
        harm(hosts, process)
        out, err = process.communicate(timeout=ENDS_WITHIN_SECONDS)
        assert process.returncode == 1, out + err
        assert re.search(told, err.splitlines()[0]) and "Traceback" not in out + err, out + err
        assert_nothing_left(hosts)


def test_a_host_that_loses_its_sshd_trains_on_and_can_be_stopped(hosts: dict[str, Host], work: Path) -> None:
    """Ranks talk to each other and to the command line without ssh, which only starts them."""
    with running(hosts, work) as process:
        hosts["beta"].stop_sshd(sessions_too=True)
        reached = saved_step(work)
        wait_until(lambda: saved_step(work) > reached + 3, "more steps")
        send_signal(process, signal.SIGTERM)
        out, err = process.communicate(timeout=ENDS_WITHIN_SECONDS)
        assert process.returncode == 75, out + err
        assert_nothing_left(hosts)


def test_ctrl_c_saves_on_all_hosts(hosts: dict[str, Host], work: Path) -> None:
    with running(hosts, work) as process:
        send_signal(process, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 75 and err == "", out + err
        assert_nothing_left(hosts)
    assert saved_step(work) == steps(RunFolder(work / HARMED))[-1]


def test_a_killed_command_line_takes_all_hosts_along(hosts: dict[str, Host], work: Path) -> None:
    with running(hosts, work) as process:
        (command_line,) = (found for found in hosts["alpha"].processes("lartpc_ds train"))
        kill(command_line)
        process.communicate(timeout=30)
        assert_nothing_left(hosts)
    last = saved_step(work) + 2
    more = [*training(HARMED, *SGD, f"train.max_steps={last}", EVERY_STEP), "--resume"]
    resumed = hosts["alpha"].run(more, work, ENVIRONMENT, timeout_seconds=120)
    assert resumed.code == 0, resumed.out + resumed.err
    assert_no_gap(work)
    assert saved_step(work) == last
    assert_nothing_left(hosts)


def test_ranks_that_start_after_the_end_of_their_job_end_at_once(hosts: dict[str, Host], work: Path) -> None:
    command = training("hasty", *SGD, LONG)
    with hosts["alpha"].started(command, work, ENVIRONMENT) as process:
        wait_until(lambda: bool(hosts["beta"].processes("deepspeed.launcher.launch")), "the launcher on beta")
        for _ in range(2):
            send_signal(process, signal.SIGTERM)
            time.sleep(0.5)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 1 and "stopped before the first checkpoint" in err, out + err
        assert_nothing_left(hosts, within_seconds=60)  # the launcher there first imports what it needs
    assert not losses(work / "hasty")


def test_a_preflight_that_fails_starts_and_leaves_nothing(hosts: dict[str, Host], work: Path) -> None:
    hosts["beta"].stop_sshd()
    refused = hosts["alpha"].run(training("refused", *SGD), work, ENVIRONMENT, timeout_seconds=60)
    assert refused.code == 2 and "Traceback" not in refused.err
    assert "beta: ssh: the host answers, but no sshd listens there" in refused.out
    assert not (work / "refused").exists()
    assert_nothing_left(hosts)
