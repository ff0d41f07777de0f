from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli import wait_until
from tests.integration.hosts import Host, cluster, kill
from tests.integration.slurm_cluster import cancel_all, job_state, slurm, submit

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    with cluster(tmp_path_factory.mktemp("hosts")) as made, slurm(made):
        yield made


@pytest.fixture
def hosts(made: dict[str, Host]) -> Iterator[dict[str, Host]]:
    yield made
    cancel_all(made)


def batch_script(folder: Path, *lines: str) -> Path:
    script = folder / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", "#SBATCH --output=out.txt --open-mode=append", *lines, ""]))
    return script


def test_slurm_runs_a_task_on_each_host(hosts: dict[str, Host], tmp_path: Path) -> None:
    alpha = hosts["alpha"]
    job = submit(alpha, batch_script(tmp_path, "srun -N2 -n2 hostname"), "--nodes=2", "--ntasks=2")
    wait_until(lambda: job_state(alpha, job) == "COMPLETED", "the job")
    assert sorted((tmp_path / "out.txt").read_text().split()) == ["alpha", "beta"]
    assert not any(host.processes() for host in hosts.values())


def test_a_slurm_job_requeues_itself_on_a_signal(hosts: dict[str, Host], tmp_path: Path) -> None:
    """The signal goes to the batch shell, which waits for its step, asks for a requeue and is started once more."""
    script = batch_script(
        tmp_path,
        "if ((SLURM_RESTART_COUNT > 0)); then echo again $SLURM_RESTART_COUNT; exit; fi",
        "trap 'echo caught; scontrol requeue $SLURM_JOB_ID' USR1",
        "srun -N2 -n2 sleep 1000 &",
        "echo ready; wait; wait",
    )
    alpha, out = hosts["alpha"], tmp_path / "out.txt"
    job = submit(alpha, script, "--nodes=2", "--ntasks=2", "--requeue")
    wait_until(lambda: all(host.processes("sleep") for host in hosts.values()), "a task on each host")
    alpha.check("scancel", "--signal=USR1", "--batch", str(job))
    wait_until(lambda: job_state(alpha, job) == "COMPLETED", "the second start")
    said = [line for line in out.read_text().splitlines() if line.split()[0] in ("ready", "caught", "again")]
    assert said == ["ready", "caught", "again 1"]
    assert not any(host.processes() for host in hosts.values())


def test_slurm_warns_before_the_time_limit(hosts: dict[str, Host], tmp_path: Path) -> None:
    script = batch_script(
        tmp_path,
        "#SBATCH --nodes=1 --time=1 --signal=B:USR1@60",  # within the limit from the start: it comes at once
        "trap 'echo caught; exit 0' USR1",
        "while :; do sleep 0.2; done",
    )
    alpha = hosts["alpha"]
    job = submit(alpha, script)
    wait_until(lambda: job_state(alpha, job) in ("COMPLETED", "FAILED", "TIMEOUT"), "the warning")
    assert (tmp_path / "out.txt").read_text() == "caught\n" and job_state(alpha, job) == "COMPLETED"


def test_slurm_puts_a_killed_node_aside(hosts: dict[str, Host]) -> None:
    alpha, beta = hosts.values()
    for daemon in beta.services("slurmd"):
        kill(daemon)
    wait_until(lambda: "down" in alpha.check("sinfo", "-h", "-n", "beta", "-o", "%T"), "beta down")
    beta.check("slurmd", "-N", "beta")  # and takes it back: the next test needs it
