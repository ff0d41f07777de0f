"""A map over processes that live no longer than the one that started them.

Each of them watches it (lartpc_ds/data/workers.py), because a killed command line can tell nobody.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from lartpc_ds.data.workers import end_with_parent

__all__ = ["map_in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, chunksize: int = 1
) -> Iterator[Result]:
    """`map(function, items)`, by `workers` processes, or by this one where that is 1; a stop ends what is not begun."""
    if workers == 1:
        yield from map(function, items)
        return
    # forkserver: a forked copy of a process that has threads (torch, h5py) can hang; an executor: multiprocessing.Pool
    # restarts a worker that cannot start (say, for a script on stdin) for ever
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=_live_with_parent) as pool:
        yield from pool.map(function, items, chunksize=chunksize)


def _live_with_parent() -> None:
    """Ctrl-C goes to every process of a terminal; the one that started this one answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
