"""The script of `lartpc-ds submit` under a real Slurm; a stand-in for `lartpc-ds` does what the job is told to do.

Training itself across hosts is in other files: here it is about signals, requeueing and resuming.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lartpc_ds.jobs.batch.batch import SubmitRequest, write_script
from tests.integration.cli import wait_until
from tests.integration.hosts import Host, cluster
from tests.integration.slurm_cluster import cancel_all, job_state, slurm, submit

pytestmark = pytest.mark.hosts

# a hostfile; or a run that ends at once with the code in `code`, or at a signal with 75
STAND_IN = r"""#!/bin/bash
cd "$(dirname "$0")" || exit
if [ "$1" = hostfile ]; then
    for host in $(scontrol show hostnames); do echo "$host slots=1"; done
    exit
fi
while [ "$1" != --hostfile ]; do shift; done
echo "$(wc -l <"$2") hosts, srun $(srun --nodes=2 --ntasks=2 hostname | sort | tr '\n' ' ')${*: -1}" >>calls
while [ "$1" != --run-dir ]; do shift; done
mkdir -p "$2" && touch "$2/job.json"
trap 'echo USR1 >>signals; exit 75' USR1
trap 'echo TERM >>signals' TERM
[ ! -e code ] || exit "$(cat code)"
echo running >>calls
while :; do sleep 0.1; done
"""


class Job:
    """A submitted script and what its stand-in wrote."""

    def __init__(self, hosts: dict[str, Host], folder: Path, *overrides: str) -> None:
        self.host, self.hosts, self.folder = next(iter(hosts.values())), hosts, folder
        (folder / "lartpc-ds").write_text(STAND_IN)
        (folder / "lartpc-ds").chmod(0o755)
        (folder / "my.toml").write_text("train.max_steps = 3\n")
        prologue = f'batch.prologue=["lartpc_ds=({folder}/lartpc-ds)"]'
        request = SubmitRequest("my.toml", "slurm", [prologue, "batch.nodes=2", *overrides])
        self.number = submit(self.host, write_script(request))

    def told(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_until_running(self) -> None:
        wait_until(lambda: "running" in self.told("calls"), "the stand-in")

    def ends_next_time_with(self, code: int) -> None:
        (self.folder / "code").write_text(str(code))

    def wait_for(self, state: str) -> None:
        wait_until(lambda: job_state(self.host, self.number) == state, state)
        wait_until(lambda: not any(host.processes() for host in self.hosts.values()), "the end of every process")


# who has the partition `urgent` sends the jobs of `test` back to the queue, a minute after their warning
PREEMPTION = """\
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=DEFAULT GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    with cluster(tmp_path_factory.mktemp("hosts")) as made, slurm(made, settings=PREEMPTION):
        yield made


@pytest.fixture
def hosts(made: dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Host]]:
    monkeypatch.chdir(tmp_path)
    yield made
    cancel_all(made)


FIRST = "2 hosts, srun alpha beta "


def turns(job: Job) -> list[str]:
    """The last argument of each start: a run folder, or --resume."""
    return [Path(line.removeprefix(FIRST)).name for line in job.told("calls") if line != "running"]


def test_the_warning_before_the_time_limit_requeues_and_the_job_resumes(hosts: dict[str, Host]) -> None:
    # Slurm looks for warnings that are due about every half a minute, so this one is due from the start
    job = Job(hosts, Path.cwd(), 'batch.time="00:01:00"', "batch.signal_seconds=59")
    job.wait_until_running()
    job.ends_next_time_with(0)
    job.wait_for("COMPLETED")
    assert turns(job) == ["my-slurm", "--resume"]
    assert job.told("signals") == ["USR1"]


def test_a_cancelled_job_is_asked_to_stop_and_stays_cancelled(hosts: dict[str, Host]) -> None:
    """Whether it saves is another matter: scancel signals the launcher and its ranks as well."""
    job = Job(hosts, Path.cwd())
    job.wait_until_running()
    job.host.check("scancel", str(job.number))
    job.wait_for("CANCELLED")
    assert set(job.told("signals")) == {"TERM", "USR1"}
    assert turns(job) == ["my-slurm"]


def test_a_preempted_job_saves_and_resumes_later(hosts: dict[str, Host]) -> None:
    job = Job(hosts, Path.cwd())
    job.wait_until_running()
    job.ends_next_time_with(0)
    urgent = Path.cwd() / "urgent.sh"
    urgent.write_text("#!/bin/bash\n#SBATCH --partition=urgent --nodes=2 --exclusive\nsleep 2\n")
    submit(job.host, urgent)
    job.wait_for("COMPLETED")
    assert turns(job) == ["my-slurm", "--resume"]
    assert job.told("signals")[0] == "USR1"


def test_a_failed_job_stays_failed(hosts: dict[str, Host]) -> None:
    (Path.cwd() / "code").write_text("3")
    job = Job(hosts, Path.cwd())
    job.wait_for("FAILED")
    assert "ExitCode=3:0" in job.host.check("scontrol", "show", "job", str(job.number))
