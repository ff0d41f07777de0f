"""Helper processes that end with the process that uses them, however that ends.

A killed process cannot tell its helpers; and the helpers of a fork server have the server for a parent, which waits for
them as they wait for work, so all of them would live for ever. But each helper holds a pipe from the process that asked
for it, and the kernel closes that pipe: a thread in the helper waits for this. Rejected: prctl's signal at a parent's
death, which would be the death of the fork server.

Python names its semaphores in shared memory, and its resource tracker takes away what is left of them when all users
have gone. So a tracker is not killed with the others: it ends by itself, a moment later.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import TypeVar

import psutil

__all__ = ["end_with_parent", "kill_all", "lives", "map_in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRACKER = "from multiprocessing.resource_tracker import main"
_TRACKER_SECONDS = 5.0


def end_with_parent(_worker: int = 0) -> None:
    """Make this helper process end when the process that asked for it has ended."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # multiprocessing has started this process
    parent.join()
    os._exit(1)


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, chunksize: int = 1
) -> Iterator[Result]:
    """`map(function, items)`, by `workers` processes, or by this process where that is 1.

    A caller that stops early ends what has not begun.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # a fork server, because a forked copy of a process that has threads (torch, h5py) can hang; an executor, because
    # multiprocessing.Pool restarts a worker that cannot start (say, for a script on stdin) for ever
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=_live_with_parent) as pool:
        yield from pool.map(function, items, chunksize=chunksize)


def _live_with_parent() -> None:
    """Leave Ctrl-C, which goes to every process of a terminal, to the process that started this one; end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill the processes, and let the resource trackers among them clean up."""
    trackers = []
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended by itself
            if any(_TRACKER in argument for argument in process.cmdline()):
                trackers.append(process)
            else:
                process.kill()
    deadline = time.monotonic() + _TRACKER_SECONDS
    while any(map(lives, trackers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for tracker in trackers:
        with suppress(psutil.NoSuchProcess):
            tracker.kill()


def lives(process: psutil.Process) -> bool:
    """Whether a process lives; one that has ended may stay in the table of processes until its parent asks for it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
