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
from pathlib import Path
from types import FrameType

import psutil

from lartpc_ds import failures
from lartpc_ds.launch.command import Command
from lartpc_ds.runlog import RunFolder

__all__ = ["run_job"]

_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0


class _StopRequests:
    """Counts SIGTERM, SIGINT and SIGUSR1 while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "_StopRequests":
        self._before = {number: signal.signal(number, self._note) for number in _STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def run_job(
    command: Command, folder: RunFolder, result: Path, *, say: Callable[[str], None], on_poll: Callable[[], None]
) -> int:
    """Start the job, follow it to its end and leave no process behind.

    Args:
        command: the launcher's command line.
        folder: the run folder, with `logs/`.
        result: the file that the ranks write last when they succeed.
        say: prints one message to the user.
        on_poll: called a few times a second, to show progress.

    Returns:
        0, 1, 2 or 75, as the command line's exit codes are defined.
    """
    failures.clear(folder.logs)
    environment = command.environment() | {"LARTPC_DS_PARENT": str(os.getpid())}
    with _StopRequests() as stops, (folder.logs / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(
            command.arguments, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _follow(launcher, folder.logs, stops, say, on_poll)
        finally:
            _end_session(launcher)
    on_poll()
    return _exit_code(launcher.returncode, folder, result, stops.count, say)


def _follow(
    launcher: "subprocess.Popen[bytes]",
    logs: Path,
    stops: _StopRequests,
    say: Callable[[str], None],
    on_poll: Callable[[], None],
) -> None:
    """Until the launcher ends, a second stop request comes, or a rank has failed and the others had their grace."""
    told: set[int] = set()
    announced = False
    deadline: float | None = None
    while launcher.poll() is None and (deadline is None or time.monotonic() < deadline):
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


def _exit_code(launcher_code: int, folder: RunFolder, result: Path, stop_count: int, say: Callable[[str], None]) -> int:
    if result.exists():
        return 0
    failure = failures.first_failure(folder.logs)
    if failure is not None and stop_count < 2:
        say(failure.report)
        return 2 if failure.by_user else 1
    if launcher_code == _RESUMABLE or stop_count:
        return _RESUMABLE if (folder.checkpoints / "last").exists() else 1
    tail = (folder.logs / "launcher.log").read_text(errors="replace").splitlines()[-12:]
    say("\n".join([f"the job ended without a result (launcher's exit code {launcher_code}); its last words:", *tail]))
    return 1
