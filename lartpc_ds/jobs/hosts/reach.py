"""How a piece of Python runs on a host: over ssh, as pdsh and mpirun reach it, or over srun inside an allocation.

The code goes through the standard input of the connection to `python -I -`, so that nothing must be installed there for
a probe to run, and no variable of the user shows in a list of processes. A host that is this machine is reached in the
same way, because the launcher reaches it so, too. Every run is limited at both ends: here the client is killed, there
SIGALRM ends the process, because sshd lets a process live on when its client is gone.

Rejected: ClusterShell's Task. It carries standard input and tells of every line when it comes, but its workers give all
hosts the same input, and here each host has its own; a worker per command goes through a shell, reports a client that
was killed without its code, and starts at most 64 at once unless told otherwise, while an all-reduce needs all hosts.
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

_CONNECT_SECONDS = 10  # a healthy sshd answers within one; a lost SYN is sent again after 1, 3 and 7


class Reach(Protocol):
    """A way to start a command on a host."""

    @property
    def name(self) -> str:
        """The name of its program, for messages."""

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        """The command to start here so that `remote` runs there with the standard input of that command."""


@dataclass(frozen=True, slots=True)
class Ssh:
    """The way over ssh, with the user's own settings (keys, aliases, known hosts); ssh may ask no question."""

    name: str = "ssh"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        """The command, whose last argument is one string for the shell there."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", "-T"]
        return ["ssh", *options, host, shlex.join(remote)]


@dataclass(frozen=True, slots=True)
class Srun:
    """The way over srun: a step beside that of the job, with the whole share of the host in the allocation."""

    name: str = "srun"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        """The command, with unquoted arguments, because no shell is between."""
        options = ["--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--cpu-bind=none", "--disable-status"]
        return ["srun", *options, *remote]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, with the arrival of each line in seconds since the epoch by the clock of this machine."""

    code: int
    """The exit code; -9 after the time limit."""
    started: float
    lines: tuple[tuple[float, str], ...]
    err: str
    timed_out: bool

    def answers(self) -> list[tuple[float, dict[str, Any]]]:
        """The JSON objects among the lines with their arrivals; a login shell there may print other lines."""
        objects = []
        for arrival, line in self.lines:
            with suppress(json.JSONDecodeError):
                value = json.loads(line)
                if isinstance(value, dict):
                    objects.append((arrival, value))
        return objects


def reach_for(launcher: str, variables: Mapping[str, str] = os.environ) -> Reach:
    """The way in which this launcher reaches its hosts.

    Raises:
        UserError: its program is not installed, or srun is not inside an allocation.
    """
    reach: Reach = Srun() if launcher == "slurm" else Ssh()
    if shutil.which(reach.name) is None:
        raise UserError(f"--launcher {launcher}: needs {reach.name}, which is not on this machine's PATH; install it")
    if launcher == "slurm" and "SLURM_JOB_ID" not in variables:
        raise UserError("--launcher slurm: works inside a Slurm job only; get one with salloc, or use lartpc-ds submit")
    return reach


def run_python(reach: Reach, host: str, script: str, timeout_seconds: float) -> Outcome:
    """Run `script` on a host with the Python at the path of this one, and wait for its end or the time limit."""
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
            with suppress(BrokenPipeError), process.stdin:  # a client that ends early gives the reason on its stderr
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
