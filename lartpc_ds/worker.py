"""What the launcher starts on every rank: `python -m lartpc_ds.worker train|evaluate RUN_DIR ...`.

A rank reads the run folder, which `lartpc-ds train` has checked and written, and decides nothing by itself. Its output
goes to `logs/rank<N>.log`; its failure, if any, to `logs/failures/`, where the parent finds the first cause.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import psutil

from lartpc_ds import failures
from lartpc_ds.runlog import RunFolder

__all__ = ["main"]

_RESUMABLE = 75


class _StopFlag:
    """Set by the first SIGTERM or SIGUSR1; the loop asks for it after each step."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._request)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches us through the parent

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def main() -> None:
    """Entry of one rank."""
    parser = argparse.ArgumentParser(prog="lartpc_ds.worker")
    parser.add_argument("mode", choices=["train", "evaluate"])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--logs", type=Path, required=True, help="folder for what this job tells its parent")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--request", type=Path, help="JSON file that says what to evaluate")
    arguments = parser.parse_args()
    logs, rank = arguments.logs, int(os.environ["RANK"])
    stop = _StopFlag()
    _redirect_output(logs / f"rank{rank}.log")
    parents = _Parents(stop)
    threading.Thread(target=_die_with, args=(parents, logs, rank), daemon=True).start()
    with failures.alive(logs, rank):
        try:
            stopped = _run(arguments, RunFolder(arguments.run_dir), stop)
        except BaseException as error:
            if parents.are_gone():  # so are other ranks, and whatever failed here is an echo of that
                failures.forget(logs, rank)
                os._exit(1)
            failures.record_failure(logs, rank, error)
            raise
    sys.exit(_RESUMABLE if stopped else 0)


def _run(arguments: argparse.Namespace, folder: RunFolder, stop: _StopFlag) -> bool:
    from lartpc_ds import session

    if arguments.mode == "evaluate":
        session.evaluate(folder, json.loads(arguments.request.read_text()))
        return False
    return session.train(folder, resume=arguments.resume, stop_requested=lambda: stop.requested)


def _redirect_output(log: Path) -> None:
    """Everything that this process prints, C++ included, goes to its log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


class _Parents:
    """The launcher and the command line that started this process; nobody would end it if they were gone.

    A stop request to the whole job may end the launcher at once; then the command line alone waits for the checkpoint.
    """

    def __init__(self, stop: _StopFlag) -> None:
        self._stop = stop
        self._launcher = os.getppid()
        self._command_line = int(os.environ.get("LARTPC_DS_PARENT", "0"))

    def are_gone(self) -> bool:
        """Is either?"""
        if self._command_line and not os.path.exists(f"/proc/{self._command_line}"):
            return True
        return os.getppid() != self._launcher and not (self._stop.requested and self._command_line)


def _die_with(parents: _Parents, logs: Path, rank: int) -> None:
    while not parents.are_gone():
        time.sleep(1)
    for child in psutil.Process().children(recursive=True):
        child.kill()  # reader processes have the fork server for a parent, and would not notice
    failures.forget(logs, rank)
    os._exit(1)


if __name__ == "__main__":
    main()
