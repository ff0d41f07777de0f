"""What the launcher starts on every rank: `python -m lartpc_ds.training.worker train|evaluate RUN_DIR ...`.

A rank reads the run folder, which `lartpc-ds train` has checked and written, and decides nothing by itself. Its output
goes to `logs/rank<N>.log`. It reports a failure over its line to the command line.
"""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.lazy_compiler import defer_compiler
from lartpc_ds.training.control_point import ControlPoint
from lartpc_ds.training.lifeline import Lifeline
from lartpc_ds.training.network import interface_towards, is_this_machine
from lartpc_ds.training.rank_environment import rank_variables

__all__ = ["main"]

_RESUMABLE = 75


class _StopFlag:
    """A flag that the first SIGTERM or SIGUSR1 sets, or the command line; the loop asks for it after each step."""

    def __init__(self) -> None:
        self.requested = False
        self.on_signal: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes a terminal's Ctrl-C on

    def request(self) -> None:
        """Ask the loop to stop after the step at hand."""
        self.requested = True

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.request()
        self.on_signal()


def main() -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser(prog="lartpc_ds.training.worker")
    parser.add_argument("mode", choices=["train", "evaluate"])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--logs", type=Path, required=True, help="Folder of the logs of this job.")
    parser.add_argument("--job", required=True, help="Name of the job of the run that this process belongs to.")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--request", type=Path, help="JSON file that says what to evaluate.")
    arguments = parser.parse_args()
    _first_to_go()
    stop = _StopFlag()
    try:
        rank, line = _join(arguments.logs, arguments.job)
    except UserError as error:
        sys.exit(f"lartpc-ds: {error}")
    _redirect_output(arguments.logs / f"rank{rank}.log")
    line.watch(stop.request)
    stop.on_signal = line.stopping
    try:
        _check_master(rank)
        stopped = _run(arguments, RunFolder(arguments.run_dir), stop)
    except BaseException as error:
        if line.launcher_is_gone(stop.requested):
            line.ended()
            os._exit(1)
        line.failed(error)
        raise
    line.ended(complete=not stopped)
    sys.exit(_RESUMABLE if stopped else 0)


def _first_to_go() -> None:
    """Let a kernel without memory kill this process and what it starts, not the command line, which reports it."""
    with suppress(OSError):  # the file exists on Linux only, and may be read-only
        Path("/proc/self/oom_score_adj").write_text("1000")  # the highest value, proc(5)


def _join(logs: Path, job: str) -> tuple[int, Lifeline]:
    """The rank of this process in its job, and its line to the command line."""
    point = ControlPoint.read(logs, job)
    os.environ.update(rank_variables(os.environ, point, len(os.sched_getaffinity(0))))
    # otherwise gloo takes the address of the host's name, which may be loopback, and nccl takes any interface
    interface = interface_towards(os.environ["MASTER_ADDR"])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if point.launcher is not None:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    rank = int(os.environ["RANK"])
    return rank, Lifeline(point, rank)


def _check_master(rank: int) -> None:
    """Check that rank 0 listens where all other ranks connect to; they would wait for it without end."""
    address = os.environ["MASTER_ADDR"]
    if rank == 0 and not is_this_machine(address):
        raise UserError(
            f"rank 0 is on {socket.gethostname()}, but the first host of the hostfile has the address {address}; "
            "schedulers place ranks in their own order of hosts: take the hostfile that `lartpc-ds hostfile make` "
            "writes inside the job"
        )


def _run(arguments: argparse.Namespace, folder: RunFolder, stop: _StopFlag) -> bool:
    defer_compiler()
    from lartpc_ds.training import session
    from lartpc_ds.training.evaluation import EvaluationRequest

    if arguments.mode == "evaluate":
        session.evaluate(folder, EvaluationRequest.read(arguments.request))
        return False
    return session.train(folder, resume=arguments.resume, stop_requested=lambda: stop.requested)


def _redirect_output(log: Path) -> None:
    """Send everything that this process prints, C++ included, to its log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    main()
