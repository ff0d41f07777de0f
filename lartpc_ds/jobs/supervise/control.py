"""The command line's end of its connections to the ranks: which of them live, which failed first, and the stop.

A thread serves the connections, because ranks end themselves when they hear nothing, and showing progress may hang on a
slow file system. The user is told of the first failure: a killed rank comes before an error, and an earlier error
before a later one, by the clock of this machine.
"""

import hmac
import json
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from lartpc_ds.jobs.site import Site
from lartpc_ds.training.control_point import BEAT_SECONDS, SILENCE_SECONDS, ControlPoint, Lines, message

__all__ = ["Control", "Failure"]

_POLL_SECONDS = 0.2
_GOODBYE_SECONDS = 5.0
_LONGEST_GREETING = 4096


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of a rank: what to print, and whether the input of the user is at fault."""

    report: str
    by_user: bool


@dataclass(slots=True)
class _Line:
    """One connection; `rank` is None until the rank has sent the token."""

    socket: socket.socket
    heard: float
    lines: Lines = field(default_factory=Lines)
    rank: int | None = None
    host: str = ""
    pid: int = 0
    ended: bool = False


class Control:
    """A server that listens while it is entered; the ranks find it by `control.json` in `logs`."""

    def __init__(self, logs: Path, site: Site) -> None:
        self._logs, self._world_size = logs, site.world_size
        everywhere = site.addresses != ("127.0.0.1",)
        self._server = socket.create_server(("" if everywhere else "127.0.0.1", 0), backlog=site.world_size)
        self._server.setblocking(False)
        port: int = self._server.getsockname()[1]
        self._token = secrets.token_hex(16)
        self._point = ControlPoint(
            site.addresses,
            port,
            site.job,
            self._token,
            site.launcher,
            site.master_addr,
            site.master_port,
            site.environment,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._lines: list[_Line] = []
        self._places: dict[int, tuple[str, int]] = {}
        self._lost: list[Failure] = []
        self._failed: list[Failure] = []
        self._complete: set[int] = set()
        self._stopping = self._closing = self._asked = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        for old in ("control.json", "ranks.json"):
            (self._logs / old).unlink(missing_ok=True)
        self._point.write(self._logs)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def living(self) -> list[int]:
        """The ranks that are at work."""
        with self._lock:
            return sorted(line.rank for line in self._lines if line.rank is not None and not line.ended)

    @property
    def places(self) -> dict[int, tuple[str, int]]:
        """The (host, process id) of every rank that has reported so far."""
        with self._lock:
            return dict(self._places)

    @property
    def asked_to_stop(self) -> bool:
        """Whether a rank was asked to stop by somebody else, such as a batch system that signals every process."""
        with self._lock:
            return self._asked

    @property
    def complete(self) -> bool:
        """Whether all ranks have done all their work."""
        with self._lock:
            return len(self._complete) == self._world_size

    @property
    def first_failure(self) -> Failure | None:
        """The failure to show; None if there is none."""
        with self._lock:
            return next(iter([*self._lost, *self._failed]), None)

    def stop(self) -> None:
        """Ask every rank to stop after its step, and also those that connect later."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                for line in self._lines:
                    _send(line, message(stop=True))

    def write_places(self) -> None:
        """Write `ranks.json` into the logs of the job, which says on which host each rank is."""
        table = {rank: {"host": host, "pid": pid} for rank, (host, pid) in sorted(self.places.items())}
        (self._logs / "ranks.json").write_text(json.dumps(table, indent=2) + "\n")

    def close(self) -> list[str]:
        """Close all connections, which ends ranks that still work; returns the ranks that could not be reached."""
        with self._lock:
            already, self._closing = self._closing, True
            if already:
                return []
            for line in self._lines:
                with suppress(OSError):
                    line.socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _GOODBYE_SECONDS
        while self._lines and time.monotonic() < deadline:
            time.sleep(0.02)
        with self._lock:
            left = [f"rank {line.rank} on {line.host}" for line in self._lines if line.rank is not None]
        ControlPoint.remove(self._logs)
        return left

    def _serve(self) -> None:
        beaten = time.monotonic()
        while True:
            ready = self._selector.select(_POLL_SECONDS)
            now = time.monotonic()
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._server:
                        self._accept(now)
                    else:
                        self._hear(key.data, now)
                if now - beaten > BEAT_SECONDS:
                    beaten = now
                    for line in list(self._lines):
                        _send(line, message(beat=True))
                        if now - line.heard > SILENCE_SECONDS:
                            since = f"{SILENCE_SECONDS:.0f} s"
                            self._drop(line, f"has given no sign of life for {since}: its host or network is down")
                if self._closing and not self._lines:
                    break
        self._selector.close()
        self._server.close()

    def _accept(self, now: float) -> None:
        with suppress(OSError):  # the caller is gone again
            connection, _ = self._server.accept()
            connection.setblocking(False)
            line = _Line(connection, now)
            self._lines.append(line)
            self._selector.register(connection, selectors.EVENT_READ, line)

    def _hear(self, line: _Line, now: float) -> None:
        try:
            data = line.socket.recv(65536)
            messages = line.lines.add(data)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            data, messages = b"", []
        if line.rank is None and line.lines.incomplete_bytes > _LONGEST_GREETING:
            data = b""
        line.heard = now
        for fields in messages:
            if line.rank is None and not self._greet(line, fields):
                return
            self._note(line, fields)
        if not data:
            self._drop(line, "was killed: out of memory, or from outside")

    def _greet(self, line: _Line, fields: dict[str, Any]) -> bool:
        rank, pid = fields.get("rank"), fields.get("pid")
        ours = isinstance(rank, int) and 0 <= rank < self._world_size and rank not in self._places
        known = hmac.compare_digest(str(fields.get("token")).encode(), self._token.encode())
        if not isinstance(rank, int) or not isinstance(pid, int) or not ours or not known or self._closing:
            self._forget(line)
            return False
        line.rank, line.host, line.pid = rank, str(fields.get("host")), pid
        self._places[rank] = (line.host, line.pid)
        if self._stopping:
            _send(line, message(stop=True))
        return True

    def _note(self, line: _Line, fields: dict[str, Any]) -> None:
        if "failed" in fields:
            failed = fields["failed"]
            line.ended = True
            if not failed["trace"]:
                self._failed.append(Failure(failed["message"], failed["by_user"]))
            else:
                where = f"rank {line.rank} failed first; the logs of all ranks are in {self._logs}"
                self._failed.append(Failure(f"{failed['trace']}{where}", False))
        elif "orphaned" in fields:
            self._lose(line, "was left alone: its launcher was killed")
            line.ended = True
        elif "ended" in fields:
            line.ended = True
            if fields.get("complete") and line.rank is not None:
                self._complete.add(line.rank)
        elif "stopping" in fields:
            self._asked = True

    def _drop(self, line: _Line, cause: str) -> None:
        if not line.ended:
            self._lose(line, cause)
        self._forget(line)

    def _lose(self, line: _Line, cause: str) -> None:
        if line.rank is not None and not self._closing:
            which = f"rank {line.rank} (process {line.pid} on {line.host})"
            self._lost.append(Failure(f"{which} {cause}; see {self._logs / f'rank{line.rank}.log'}", False))

    def _forget(self, line: _Line) -> None:
        self._selector.unregister(line.socket)
        line.socket.close()
        self._lines.remove(line)


def _send(line: _Line, data: bytes) -> None:
    with suppress(OSError):  # a connection that is cut is noticed when it is read
        line.socket.send(data)
