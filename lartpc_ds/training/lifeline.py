"""The line between a rank and the command line that started its job.

When one rank fails, the others fail too, later and for a worse reason ("connection closed by peer"); and a kill, a cut
link or a batch system can end any process of a job at any time. So every rank holds a TCP connection to the command
line. Over it the rank says who and where it is, sends a beat every second, and reports its failure and its end. A
connection that closes without a word means a killed rank; a connection that is silent for `SILENCE_SECONDS` means a
dead host or a cut link. The same holds the other way round: a rank that has lost its command line is ended, wherever it
runs. Rejected: process ids in the run folder, which say nothing about another host, and the age of files there, which a
network file system may show a minute late.
"""

import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import psutil

from lartpc_ds.data.processes import kill_all
from lartpc_ds.errors import RunError, UserError
from lartpc_ds.training.control_point import BEAT_SECONDS, SILENCE_SECONDS, ControlPoint, Lines, message

__all__ = ["Lifeline"]

_CONNECT_SECONDS = 5.0
_ORPHAN_SECONDS = 2.5  # a stop request to every process of a job may reach the launcher before the rank


class Lifeline:
    """The rank's end of the line."""

    def __init__(self, point: ControlPoint, rank: int) -> None:
        """Connect, and leave the line to a guard. The guard is a forked process, so call this before any thread starts.

        Raises:
            UserError: the command line answers at none of its addresses.
        """
        self._launcher = os.getppid()
        line = _connect(point, rank)
        self._guard, end = socket.socketpair()
        me = os.getpid()
        if os.fork() == 0:
            try:
                self._guard.close()
                _Guard(line, end, psutil.Process(me), self._launcher).run()
            finally:
                os._exit(0)
        line.close()
        end.close()

    def watch(self, on_stop: Callable[[], None]) -> None:
        """Start a thread that calls `on_stop` at every stop request."""
        threading.Thread(target=self._listen, args=(on_stop,), daemon=True).start()

    def launcher_is_gone(self, stopping: bool) -> bool:
        """Whether the launcher has ended: then other ranks have ended with it, and what fails here follows from that.

        Where the job is `stopping`, a launcher that has ended says nothing: the stop request may have ended it at once,
        and the command line waits for the checkpoint.
        """
        return os.getppid() != self._launcher and not stopping

    def stopping(self) -> None:
        """Tell that a stop request came by signal."""
        self._send(message(stopping=True))

    def failed(self, error: BaseException) -> None:
        """Tell why this rank fails."""
        trace = "" if isinstance(error, RunError | UserError) else "".join(traceback.format_exception(error))
        self._send(message(failed={"by_user": isinstance(error, UserError), "message": str(error), "trace": trace}))

    def ended(self, *, complete: bool = False) -> None:
        """Tell that this rank ends on purpose, with all its work done or not, so that nobody asks what killed it."""
        self._send(message(ended=True, complete=complete))

    def close(self) -> None:
        """Let the guard go."""
        self._guard.close()

    def _send(self, data: bytes) -> None:
        with suppress(OSError):
            self._guard.sendall(data)

    def _listen(self, on_stop: Callable[[], None]) -> None:
        with suppress(OSError):
            while self._guard.recv(1024):
                on_stop()
        os._exit(1)  # without its guard a rank would outlive its job


class _Guard:
    """The process that holds a rank's line.

    It is a process of its own because the rank may block its interpreter for longer than a silence may last, for
    example while it loads a library from a slow file system; and because it can end the rank whatever the rank hangs
    in.
    """

    def __init__(self, line: socket.socket, rank: socket.socket, process: psutil.Process, launcher: int) -> None:
        self._line, self._rank, self._process, self._launcher = line, rank, process, launcher
        self._stopping = False

    def run(self) -> None:
        """Pass messages on until the rank has ended.

        When the rank ends, the line closes; when the line ends, the rank.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a batch system signals every process of a job
        from_rank, from_line = Lines(), Lines()
        heard = beaten = seen = time.monotonic()
        while True:
            ready = select.select([self._rank, self._line], [], [], BEAT_SECONDS)[0]
            now = time.monotonic()
            if self._rank in ready and not self._from_rank(from_rank):
                return
            if self._line in ready:
                heard = now
                if not self._from_line(from_line):
                    return self._kill()
            if now - beaten >= BEAT_SECONDS:
                beaten = now
                self._tell(message(beat=True))
                if not self._launcher_is_gone():
                    seen = now
                if now - seen > _ORPHAN_SECONDS:
                    self._tell(message(orphaned=True))
                    return self._kill()
                if now - heard > SILENCE_SECONDS:
                    return self._kill()

    def _from_rank(self, lines: Lines) -> bool:
        data = _received(self._rank)
        for content in lines.add(data):
            self._stopping |= "stopping" in content
            self._tell(message(**content))
        return bool(data)

    def _from_line(self, lines: Lines) -> bool:
        data = _received(self._line)
        if any("stop" in content for content in lines.add(data)):
            self._stopping = True
            with suppress(OSError):
                self._rank.sendall(message(stop=True))
        return bool(data)

    def _tell(self, data: bytes) -> None:
        with suppress(OSError):  # `run` notices by listening that the line is cut
            self._line.sendall(data)

    def _launcher_is_gone(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            return self._process.ppid() != self._launcher and not self._stopping
        return True

    def _kill(self) -> None:
        """Kill the rank and its readers, which have the fork server for a parent and would not notice its end."""
        with suppress(psutil.NoSuchProcess):
            family = [self._process, *self._process.children(recursive=True)]
            kill_all(process for process in family if process.pid != os.getpid())


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(65536)
    except OSError:
        return b""


def _connect(point: ControlPoint, rank: int) -> socket.socket:
    problems = []
    for address in point.addresses:
        try:
            line = socket.create_connection((address, point.port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            problems.append(f"{address}: {error}")
            continue
        line.settimeout(SILENCE_SECONDS)
        line.sendall(message(token=point.token, rank=rank, host=socket.gethostname(), pid=os.getpid()))
        return line
    raise UserError(
        f"rank {rank} on {socket.gethostname()} cannot reach the command line that started it, port {point.port} of "
        f"{'; '.join(problems)}; is there a firewall between them, or has the command line ended?"
    )
