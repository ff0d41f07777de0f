"""Ranks that are small processes, and a command line for them, for tests of the lines between the two."""

import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lartpc_ds.jobs.site import here
from lartpc_ds.jobs.supervise.control import Control
from lartpc_ds.training.control_point import ControlPoint, message

__all__ = ["RANK", "greeted", "listening", "rank", "wait"]

RANK = """
import sys, time
from pathlib import Path
from lartpc_ds.training import lifeline
from lartpc_ds.errors import RunError, UserError
from lartpc_ds.training.control_point import ControlPoint
from lartpc_ds.training.lifeline import Lifeline
stopped = []
line = Lifeline(ControlPoint.read(Path(sys.argv[1]), "this"), int(sys.argv[2]))
line.watch(lambda: stopped.append(True))
"""


@contextmanager
def rank(logs: Path, number: int, then: str = "time.sleep(600)", before: str = "") -> Iterator["subprocess.Popen[str]"]:
    script = RANK.replace("stopped = []", f"stopped = []; {before}") + textwrap.dedent(then)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(logs), str(number)], text=True, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listening(logs: Path) -> Control:
    variables = {"GIVEN": "yes"}
    return Control(logs, replace(here(2), job="this", environment=variables))


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def greeted(logs: Path, number: int, token: str | None = None) -> socket.socket:
    point = ControlPoint.read(logs, "this")
    line = socket.create_connection(("127.0.0.1", point.port))
    line.sendall(message(token=token or point.token, rank=number, host="beta", pid=17))
    return line
