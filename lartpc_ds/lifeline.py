"""The line between a rank and the command line that started its job.

When one rank fails the others fail too, later and for a worse reason ("connection closed by peer"); and a kill, a cut
link or a batch system can take any process of a job at any time. So every rank holds a TCP connection to the command
line: it says who and where it is, beats once a second, tells its own failure, and its end. A connection that closes
without a word is a killed rank; one that is silent for `SILENCE_SECONDS` is a dead host or a cut link. The same holds
the other way round: a rank that has lost its command line ends itself, wherever it runs. Rejected: process ids in the
run folder, which say nothing about another host, and the age of files there, which a network file system may show a
minute late.
"""

import json
import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from lartpc_ds.errors import UserError

__all__ = ["BEAT_SECONDS", "SILENCE_SECONDS", "ControlPoint", "Lifeline", "Lines", "message"]

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 20.0
"""After so long without a beat the other end counts as gone: longer than a network hiccup or a paused process."""
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ControlPoint:
    """Where the command line listens, and what it tells every rank of its job: `control.json` in the job's logs."""

    addresses: tuple[str, ...]
    """Of the command line's machine; a rank takes the first that answers."""
    port: int
    token: str
    """Whoever cannot read the run folder does not know it."""
    launcher: str | None
    """Whose variables say which rank a process is; None: DeepSpeed's own launcher sets them."""
    master_addr: str
    master_port: int
    environment: Mapping[str, str]
    """Variables of every rank."""

    def write(self, logs: Path) -> None:
        """For the owner's eyes only."""
        path, partial = logs / "control.json", logs / "control.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(json.dumps(asdict(self)))
        partial.replace(path)

    @classmethod
    def read(cls, logs: Path) -> Self | None:
        """None: nobody listens, because someone started the rank by hand."""
        try:
            tree = json.loads((logs / "control.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**{**tree, "addresses": tuple(tree["addresses"])})

    @staticmethod
    def remove(logs: Path) -> None:
        """Of a job that has ended."""
        (logs / "control.json").unlink(missing_ok=True)


def message(**fields: Any) -> bytes:
    """One line of the conversation."""
    return json.dumps(fields).encode() + b"\n"


class Lines:
    """Messages out of a stream of bytes, when they are complete."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes; ValueError if it is none of ours."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in complete]


class Lifeline:
    """A rank's end. Without a `ControlPoint` it watches nothing but the launcher that started this process."""

    def __init__(self, point: ControlPoint | None, rank: int) -> None:
        """Connect, or fail.

        Raises:
            UserError: the command line answers at none of its addresses.
        """
        self._launcher = os.getppid()
        self._socket = None if point is None else _connect(point, rank)
        self._sending = threading.Lock()
        self._cut = False

    def watch(self, on_stop: Callable[[], None], stopping: Callable[[], bool]) -> None:
        """From now on, in a thread: pass stop requests on, and end this process when nobody is left to end it."""
        threading.Thread(target=self._watch, args=(on_stop, stopping), daemon=True).start()

    def is_cut(self, stopping: bool) -> bool:
        """Has the command line or the launcher gone? Then whatever fails here is an echo of that.

        A stop request to a whole job may end the launcher at once; then the command line alone waits for the
        checkpoint.
        """
        return self._cut or (os.getppid() != self._launcher and not (stopping and self._socket is not None))

    def failed(self, error: BaseException) -> None:
        """Tell why this rank fails."""
        trace = "".join(traceback.format_exception(error))
        self._send(message(failed={"by_user": isinstance(error, UserError), "message": str(error), "trace": trace}))

    def ended(self) -> None:
        """This rank ends on purpose: nobody need ask what killed it."""
        self._send(message(ended=True))

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, data: bytes) -> None:
        if self._socket is not None:
            with self._sending, suppress(OSError):  # a line that is cut is noticed by listening
                self._socket.sendall(data)

    def _watch(self, on_stop: Callable[[], None], stopping: Callable[[], bool]) -> None:
        lines, heard = Lines(), time.monotonic()
        while not self.is_cut(stopping()):
            self._send(message(beat=True))
            if self._socket is None:
                time.sleep(BEAT_SECONDS)
            elif select.select([self._socket], [], [], BEAT_SECONDS)[0]:
                heard = time.monotonic()
                self._cut = not self._listen(self._socket, lines, on_stop)
            elif time.monotonic() - heard > SILENCE_SECONDS:
                self._cut = True
        self.ended()
        for child in psutil.Process().children(recursive=True):
            child.kill()  # reader processes have the fork server for a parent, and would not notice
        os._exit(1)

    def _listen(self, line: socket.socket, lines: Lines, on_stop: Callable[[], None]) -> bool:
        """Whether the other end is still there."""
        try:
            data = line.recv(4096)
        except OSError:
            return False
        if any("stop" in told for told in lines.add(data)):
            on_stop()
        return bool(data)


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
