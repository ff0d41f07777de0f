"""Run the launcher, and make sure that every process under it ends, on this machine and on other hosts.

By itself the deepspeed launcher leaves its workers running on SIGTERM, waits 30 s for ranks that hang in a collective,
may exit with 0 after a kill, and over pdsh ends what it started with a `pkill` that also hits other jobs of the same
user. So the launcher runs in a session of its own, all of which is killed at the end whatever happened. Ranks anywhere
end when their connection to this process does, stop requests go over that connection, and success is a file that the
ranks leave and not an exit code. The terminal shows what this process reads from the run folder; the output of the
launcher stays in `logs/`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from lartpc_ds.data.processes import kill_all
from lartpc_ds.jobs.site import Site
from lartpc_ds.jobs.supervise.command import Command
from lartpc_ds.jobs.supervise.control import Control, Failure
from lartpc_ds.jobs.supervise.stops import RESUMABLE

__all__ = ["JobEnd", "run_job"]

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0
_START_SECONDS = 300.0  # imports from a slow network file system take minutes
_EXIT_SECONDS = 30.0
_PATIENCE_SECONDS = 1.5  # for the signal that ended the launcher to reach us or a rank
_VISIBLE_SECONDS = 65.0  # a network file system may show a new file this late


class _StopRequests:
    """Counts SIGTERM, SIGINT and SIGUSR1 while it is entered.

    However often SIGUSR1 comes, it counts as one request, for a checkpoint: a batch system may signal every process of
    a job, and the script of the job then forwards its own signal as SIGUSR1.
    """

    def __init__(self) -> None:
        self.count = 0
        self._by_force = 0

    def __enter__(self) -> "_StopRequests":
        self._before = {number: signal.signal(number, self._note) for number in _STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._by_force += number != signal.SIGUSR1
        self.count = max(1, self._by_force)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job: the exit code of the command line (0, 1, 2 or 75), and the text about a failure."""

    code: int
    report: str | None = None


def run_job(
    command: Command,
    site: Site,
    logs: Path,
    result: Path,
    *,
    resumable: Callable[[], bool],
    say: Callable[[str], None],
    on_poll: Callable[[], None],
) -> JobEnd:
    """Start the job, follow it to its end, and leave no process behind.

    Args:
        command: the command line of the launcher.
        site: where the ranks will be.
        logs: the folder of this job alone.
        result: the file that the ranks write last when they succeed.
        resumable: says whether there is a checkpoint to continue from.
        say: prints one message to the user.
        on_poll: called a few times a second, to show progress.
    """
    with Control(logs, site) as control, _StopRequests() as stops, (logs / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(
            command.arguments,
            env=command.environment(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            failure = _follow(launcher, control, site, stops, say, on_poll)
        finally:
            left = control.close()
            _end_session(launcher)
    on_poll()
    if left:
        say(f"out of reach: {', '.join(left)}; without a sign of life from here they end by themselves")
    if control.complete:
        _wait_for(result)
        return JobEnd(0)
    stop_count = stops.count or int(control.asked_to_stop)
    return _job_end(launcher.returncode, failure, logs, result, stop_count, resumable)


def _follow(
    launcher: "subprocess.Popen[bytes]",
    control: Control,
    site: Site,
    stops: _StopRequests,
    say: Callable[[str], None],
    on_poll: Callable[[], None],
) -> Failure | None:
    """Wait until the launcher ends, a second stop request comes, or others have had time to end after a rank failed.

    A stop request of a batch system reaches every process and ends the launcher while the ranks save; then this waits
    for the ranks.
    """
    announced = complete = False
    deadline: float | None = None
    alone_since: float | None = None
    idle_since: float | None = None
    started = time.monotonic()
    while launcher.poll() is None or control.living:
        now = time.monotonic()
        if deadline is not None and now > deadline:
            break
        if launcher.poll() is not None and not (stops.count or control.asked_to_stop):
            alone_since = alone_since or now
            if now - alone_since > _PATIENCE_SECONDS:
                break
        time.sleep(_POLL_SECONDS)
        on_poll()
        if stops.count > 1:
            say("stopping at once")
            return control.first_failure
        if stops.count == 1:
            if not announced:
                say("stopping after this step, with a checkpoint; a second signal stops at once")
            announced = True
            control.stop()
        if control.first_failure is not None and deadline is None:
            # the other ranks may wait in a collective that the failed one will not join
            deadline = now + _GRACE_SECONDS
        places = control.places
        if len(places) == site.world_size and not complete:
            complete = True
            control.write_places()
            _check_places(places, site, say)
        if not complete and now - started > _START_SECONDS and control.first_failure is None:
            return _not_started(places, site)
        idle_since = (idle_since or now) if complete and not control.living else None
        if idle_since is not None and now - idle_since > _EXIT_SECONDS:
            break  # a launcher whose ssh hangs on a dead host never ends
    return control.first_failure


def _wait_for(result: Path) -> None:
    """Wait until this host sees the file of another; if it does not, the messages of the ranks suffice."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not result.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        os.listdir(result.parent)  # NFS refreshes a folder when it is opened


def _not_started(places: Mapping[int, tuple[str, int]], site: Site) -> Failure:
    missing: dict[str, list[int]] = {}
    for rank, host in enumerate(site.rank_hosts):
        if rank not in places:
            missing.setdefault(host, []).append(rank)
    listed = "; ".join(f"{host}: rank(s) {', '.join(map(str, ranks))}" for host, ranks in missing.items())
    return Failure(f"not started within {_START_SECONDS:.0f} s: {listed}; see launcher.log in the run's logs", False)


def _check_places(places: Mapping[int, tuple[str, int]], site: Site, say: Callable[[str], None]) -> None:
    """Say so where a scheduler has placed ranks differently, as other halos then cross the network than planned."""
    actual_hosts: dict[str, set[str]] = {}
    for rank, planned in enumerate(site.rank_hosts):
        actual_hosts.setdefault(planned, set()).add(places[rank][0])
    seen = {host for host, _ in places.values()}
    if len(seen) != len(site.hosts) or any(len(hosts) > 1 for hosts in actual_hosts.values()):
        order = ", ".join(places[rank][0] for rank in sorted(places))
        say(f"note: {site.launcher} has placed the ranks on other hosts than the plan says: {order}")


def _end_session(launcher: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the session of the launcher and its children; after a success nothing is left."""
    members = {process for process in psutil.process_iter() if _session(process.pid) == launcher.pid}
    for process in list(members):
        with suppress(psutil.NoSuchProcess):
            members.update(process.children(recursive=True))  # pdsh starts each ssh in a session of its own
    kill_all(members)
    launcher.wait()
    psutil.wait_procs(members, timeout=10)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _job_end(
    launcher_code: int,
    failure: Failure | None,
    logs: Path,
    result: Path,
    stop_count: int,
    resumable: Callable[[], bool],
) -> JobEnd:
    if result.exists():
        return JobEnd(0)
    if failure is not None and stop_count < 2:
        return JobEnd(2 if failure.by_user else 1, failure.report)
    if launcher_code == RESUMABLE or stop_count:
        return JobEnd(RESUMABLE) if resumable() else JobEnd(1, "stopped before the first checkpoint")
    # over hosts the runner of DeepSpeed exits with 0 when a signal ends the launcher itself
    what = "failed" if launcher_code > 0 else "was killed, from outside or for lack of memory"
    tail = (logs / "launcher.log").read_text(errors="replace").splitlines()[-12:]
    return JobEnd(1, "\n".join([f"the deepspeed launcher {what} (exit code {launcher_code}); its last words:", *tail]))
