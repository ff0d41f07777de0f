"""Run the launcher and answer for every process under it.

Left to itself the deepspeed launcher orphans its workers on SIGTERM, waits 30 s for ranks that hang in a collective,
and can exit 0 after a kill. So the launcher gets a session of its own, which is killed whole at the end whatever
happened; stop requests go straight to the ranks; and success is a file that the ranks leave, not an exit code. The
terminal shows what this process reads from the run folder, so the launcher's chatter stays in `logs/`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from lartpc_ds import failures
from lartpc_ds.launch.command import Command

__all__ = ["JobEnd", "run_job"]

_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0


class _StopRequests:
    """Counts SIGTERM, SIGINT and SIGUSR1 while it is entered.

    SIGUSR1 asks for no more than a checkpoint, however often it comes: a batch system may signal every process of a
    job, of which the job's script then forwards its own as SIGUSR1, and that is one request.
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
    """How a job ended: the command line's exit code (0, 1, 2 or 75), and what to tell the user of a failure."""

    code: int
    report: str | None = None


def run_job(
    command: Command,
    logs: Path,
    result: Path,
    *,
    resumable: Callable[[], bool],
    say: Callable[[str], None],
    on_poll: Callable[[], None],
) -> JobEnd:
    """Start the job, follow it to its end and leave no process behind.

    Args:
        command: the launcher's command line.
        logs: folder of this job alone: logs, process ids, failures.
        result: the file that the ranks write last when they succeed.
        resumable: is there a checkpoint to continue from?
        say: prints one message to the user.
        on_poll: called a few times a second, to show progress.
    """
    failures.clear(logs)
    environment = command.environment() | {"LARTPC_DS_PARENT": str(os.getpid())}
    with _StopRequests() as stops, (logs / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(
            command.arguments, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _follow(launcher, logs, stops, say, on_poll)
        finally:
            _end_session(launcher)
    on_poll()
    return _job_end(launcher.returncode, logs, result, stops.count, resumable)


def _follow(
    launcher: "subprocess.Popen[bytes]",
    logs: Path,
    stops: _StopRequests,
    say: Callable[[str], None],
    on_poll: Callable[[], None],
) -> None:
    """Until the launcher ends, a second stop request comes, or a rank has failed and the others had their grace.

    A batch system's stop request reaches every process, and the launcher dies of it while the ranks save: then they
    are what is waited for.
    """
    told: set[int] = set()
    announced = False
    deadline: float | None = None
    while launcher.poll() is None or (stops.count and failures.living_ranks(logs)):
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
        on_poll()
        if stops.count > 1:
            say("stopping at once")
            return
        if stops.count == 1:
            if not announced:
                say("stopping after this step, with a checkpoint; a second signal stops at once")
            announced = True
            fresh = set(failures.rank_pids(logs).values()) - told  # a rank that starts later is told later
            for pid in fresh:
                _signal(pid, signal.SIGUSR1)
            told |= fresh
        if failures.record_lost_ranks(logs) and deadline is None:
            # the other ranks may wait in a collective which the failed one will not join
            deadline = time.monotonic() + _GRACE_SECONDS
    failures.record_lost_ranks(logs)  # the launcher may end between two looks


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself


def _end_session(launcher: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the launcher's session: after a success that is nothing."""
    members = [process for process in psutil.process_iter() if _session(process.pid) == launcher.pid]
    for process in members:
        _signal(process.pid, signal.SIGKILL)
    launcher.wait()
    psutil.wait_procs(members, timeout=10)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _job_end(launcher_code: int, logs: Path, result: Path, stop_count: int, resumable: Callable[[], bool]) -> JobEnd:
    if result.exists():
        return JobEnd(0)
    failure = failures.first_failure(logs)
    if failure is not None and stop_count < 2:
        return JobEnd(2 if failure.by_user else 1, failure.report)
    if launcher_code == _RESUMABLE or stop_count:
        return JobEnd(_RESUMABLE) if resumable() else JobEnd(1, "stopped before the first checkpoint")
    # the runner exits with 0 when a signal ends the launcher proper
    what = "failed" if launcher_code > 0 else "was killed, from outside or for lack of memory"
    tail = (logs / "launcher.log").read_text(errors="replace").splitlines()[-12:]
    return JobEnd(1, "\n".join([f"the deepspeed launcher {what} (exit code {launcher_code}); its last words:", *tail]))
