"""How a piece of Python runs on a host: over ssh, as pdsh and mpirun reach it, or over srun inside an allocation.

The code travels through the connection's standard input to `python -I -`: nothing need be installed there for a probe
to run, and no variable of the user's shows in a process list. A host that is this machine goes the same way, because
the launcher does so too. Every run is bounded at both ends: here by killing the client, there by SIGALRM, since sshd
lets a process live on when its client has gone.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from lartpc_ds.errors import UserError

__all__ = ["Outcome", "Reach", "Srun", "Ssh", "reach_for", "run_python"]

_CONNECT_SECONDS = 10  # a sshd that is well answers in one; a lost SYN is sent again after 1, 3 and 7


class Reach(Protocol):
    """A way to a host."""

    @property
    def name(self) -> str:
        """Of its program, for messages."""

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        """What to start here so that `remote` runs there, with this process's standard input."""


@dataclass(frozen=True, slots=True)
class Ssh:
    """The user's own ssh settings count (keys, aliases, known hosts), but it may ask no question."""

    name: str = "ssh"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        """One string for the shell there."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", "-T"]
        return ["ssh", *options, host, shlex.join(remote)]


@dataclass(frozen=True, slots=True)
class Srun:
    """A step beside the job's own, with the whole of the host's share of the allocation."""

    name: str = "srun"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        """Arguments as they are: no shell is between."""
        options = ["--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--cpu-bind=none", "--disable-status"]
        return ["srun", *options, *remote]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; when each line came, in seconds since the epoch by this machine's clock, to compare clocks."""

    code: int  # -9 after the time limit
    started: float
    lines: tuple[tuple[float, str], ...]
    err: str
    timed_out: bool

    def answers(self) -> list[tuple[float, dict[str, Any]]]:
        """The JSON objects among the lines; a login shell there may print lines of its own."""
        found = []
        for arrival, line in self.lines:
            with suppress(json.JSONDecodeError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append((arrival, value))
        return found


def reach_for(launcher: str, variables: Mapping[str, str] = os.environ) -> Reach:
    """The way by which this launcher reaches its hosts.

    Raises:
        UserError: its program is not installed, or srun outside an allocation.
    """
    reach: Reach = Srun() if launcher == "slurm" else Ssh()
    if shutil.which(reach.name) is None:
        raise UserError(f"--launcher {launcher}: needs {reach.name}, which is not on this machine's PATH; install it")
    if launcher == "slurm" and "SLURM_JOB_ID" not in variables:
        raise UserError("--launcher slurm: works inside a Slurm job only; get one with salloc, or use lartpc-ds submit")
    return reach


def run_python(reach: Reach, host: str, script: str, timeout_seconds: float) -> Outcome:
    """Run `script` with this Python on a host, and wait for its end or the time limit."""
    command = reach.command(host, [sys.executable, "-I", "-"])
    guarded = f"import signal\nsignal.alarm({int(timeout_seconds) + 1})\n{script}"
    started = time.time()
    lines: list[tuple[float, str]] = []
    with tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, errors="replace"
        )
        assert process.stdin is not None and process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_seconds, expire)
        timer.start()
        try:
            with suppress(BrokenPipeError), process.stdin:  # a client that ends early says why on its stderr
                process.stdin.write(guarded)
            for line in process.stdout:
                lines.append((time.time(), line.rstrip("\n")))
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
        err.seek(0)
        return Outcome(code, started, tuple(lines), err.read(), expired.is_set())
