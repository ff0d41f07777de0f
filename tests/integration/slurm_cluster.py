"""A real Slurm on the hosts of `tests.integration.hosts`: one controller, a daemon for each host, no accounting.

Nothing of it is simulated: `sbatch`, `srun`, `scontrol requeue` and the signal before the time limit are Slurm's.
Control groups stay out: they belong to the machine, whose other processes a test must not touch; so memory and cores
are counted by the scheduler, and not enforced. The waits that Slurm makes for big clusters are cut to seconds.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.integration.cli import wait_until
from tests.integration.hosts import Host, kill, require

__all__ = ["cancel_all", "job_state", "slurm", "submit"]

_DAEMONS = ("munged", "slurmctld", "slurmd")

# cred_expire is also the time for which a requeued job must wait; its default is 120 s
_CONFIG = """\
ClusterName=test
SlurmctldHost={controller}({address})
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire={requeue_seconds}
StateSaveLocation=/run/host/slurmctld
SlurmdSpoolDir=/run/host/slurmd
SlurmctldPidFile=/run/host/slurmctld.pid
SlurmdPidFile=/run/host/slurmd.pid
SlurmctldLogFile=/run/host/slurmctld.log
SlurmdLogFile=/run/host/slurmd.log
SlurmdParameters=config_overrides
SlurmdTimeout=15
KillWait=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
"""


@contextmanager
def slurm(hosts: Mapping[str, Host], *, cpus: int = 2, requeue_seconds: int = 5, settings: str = "") -> Iterator[None]:
    """Slurm over these hosts, controlled by the first; each says that it has `cpus`, whatever the machine has.

    `settings` are more lines of slurm.conf, before all others. A requeued job starts again after about
    `requeue_seconds`. Logs are in each host's folder: `slurmd.log` and so on.
    """
    require((*_DAEMONS, "sbatch"), "slurm-wlm munge")
    controller = next(iter(hosts.values()))
    shared = controller.folder.parent / "slurm"
    shared.mkdir()
    (shared / "slurm.conf").write_text(settings + _config(controller, hosts.values(), cpus, requeue_seconds))
    (shared / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = os.urandom(128)
    try:
        for host in hosts.values():
            host.bind(shared, Path("/etc/slurm"))
            _start_munged(host, key)
        (controller.folder / "slurmctld").mkdir()
        controller.check("slurmctld")
        for host in hosts.values():
            host.check("slurmd", "-N", host.name)
        _await_idle(controller, len(hosts))
        yield
    finally:
        _stop(hosts.values())


def submit(host: Host, script: Path, *options: str) -> int:
    """`sbatch SCRIPT` in the script's folder; the job's number."""
    sbatch = host.run(["sbatch", "--parsable", *options, str(script)], cwd=script.parent)
    assert sbatch.code == 0, sbatch
    return int(sbatch.out)


def job_state(host: Host, job: int) -> str:
    """`PENDING`, `RUNNING`, `COMPLETED`, ...; Slurm forgets a job five minutes after its end."""
    fields = host.check("scontrol", "--oneliner", "show", "job", str(job)).split()
    return next(field.removeprefix("JobState=") for field in fields if field.startswith("JobState="))


def cancel_all(hosts: Mapping[str, Host]) -> None:
    """End every job that a test has left, and wait until each node is ready for the next."""
    controller = next(iter(hosts.values()))
    controller.check("scancel", "--user=root")
    _await_idle(controller, len(hosts))


def _config(controller: Host, hosts: Collection[Host], cpus: int, requeue_seconds: int) -> str:
    lines = [
        f"NodeName={host.name} NodeAddr={host.address} CPUs={cpus} RealMemory=4000 State=UNKNOWN" for host in hosts
    ]
    lines.append("PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    head = _CONFIG.format(controller=controller.name, address=controller.address, requeue_seconds=requeue_seconds)
    return head + "\n".join(lines) + "\n"


def _start_munged(host: Host, key: bytes) -> None:
    file = host.folder / "munge.key"
    file.touch(mode=0o600)
    file.write_bytes(key)
    own = [f"--{name}-file=/run/host/munge.{end}" for name, end in (("key", "key"), ("log", "log"), ("seed", "seed"))]
    # --force: the daemon would not run as root, nor with its files below a folder like /tmp
    host.check(str(shutil.which("munged")), "--force", *own)


def _await_idle(controller: Host, nodes: int) -> None:
    def idle() -> bool:
        shown = controller.run(["sinfo", "--noheader", "--Node", "--partition=test", "--format=%T"])
        return shown.out.split() == ["idle"] * nodes

    wait_until(idle, "idle Slurm nodes", timeout_seconds=60)


def _stop(hosts: Collection[Host]) -> None:
    """Without farewell: what a job left is for the end of its host."""
    for host in hosts:
        for name in ("slurmctld", "slurmscriptd", "slurmd", "slurmstepd", "munged"):
            for process in host.services(name):
                kill(process)
