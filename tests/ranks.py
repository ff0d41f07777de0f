"""Run a function on several ranks of one machine, as a plain function call of a test.

Each rank is a fresh process of a fork server that has loaded everything already (`tests.ranks_preload`): `spawn` would
pay these imports per rank, and `fork` from a pytest process with threads may deadlock. Ranks that live on for the next
test would be faster still, but DeepSpeed keeps process groups in globals and starts no second engine beside them. The
ranks meet in a file, so no port can be taken. A rank that fails, dies or hangs fails the test with its name; nothing
here ever skips.
"""

import multiprocessing as mp
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ["run_ranks"]

T = TypeVar("T")


def run_ranks(world_size: int, fn: Callable[..., T], *args: object, timeout_seconds: float = 120) -> list[T]:
    """What `fn(*args)` returns on each of `world_size` gloo ranks, in rank order.

    `fn` is a function at the top level of a module and, like its arguments and results, goes through pickle. It finds
    an initialised process group, one torch thread, the environment of the caller and the variables of a launcher.

    Raises:
        AssertionError: a rank raised (with its traceback), died, or was still running after `timeout_seconds`.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranks_preload"])
    work = pickle.dumps((fn, args))  # plain pickle: multiprocessing's own would pass tensors by file descriptor
    deadline = time.monotonic() + timeout_seconds
    processes: list[BaseProcess] = []
    rank_of: dict[Connection, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for environment in _environments(world_size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_rank_main, args=(theirs, environment, folder, timeout_seconds, work))
                process.start()
                theirs.close()
                rank_of[ours] = len(processes)
                processes.append(process)
            results: dict[int, T] = _collect(fn, rank_of, deadline)
            _await_exits(processes, deadline)
        finally:
            for started in processes:
                started.kill()
                started.join()
            for connection in rank_of:
                connection.close()
    return [results[rank] for rank in range(world_size)]


def _environments(world_size: int) -> list[dict[str, str]]:
    """The caller's environment and a launcher's variables, by rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",  # the host's own name need not resolve
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _collect(fn: Callable[..., T], rank_of: dict[Connection, int], deadline: float) -> dict[int, T]:
    results: dict[int, T] = {}
    running = dict(rank_of)
    while running:
        ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"{fn.__qualname__} timed out; ranks still running: {sorted(running.values())}")
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = running.pop(connection)
            try:
                succeeded, outcome = pickle.loads(connection.recv_bytes())
            except EOFError:
                raise AssertionError(f"{fn.__qualname__}: rank {rank} died without a word") from None
            if not succeeded:
                raise AssertionError(f"{fn.__qualname__} failed on rank {rank} of {len(rank_of)}:\n{outcome}")
            results[rank] = outcome
    return results


def _await_exits(processes: list[BaseProcess], deadline: float) -> None:
    for rank, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode != 0:
            end = "hung" if process.exitcode is None else f"ended with exit code {process.exitcode}"
            raise AssertionError(f"rank {rank} returned its result, but then {end}")


def _rank_main(
    connection: Connection, environment: dict[str, str], folder: str, timeout_seconds: float, work: bytes
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            timeout=timedelta(seconds=2 * timeout_seconds),  # the caller's deadline comes first and names the ranks
        )
        fn, args = pickle.loads(work)
        report = pickle.dumps((True, fn(*args)))
    except BaseException:  # a SystemExit is a failure, too
        connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
        connection.poll(None)  # exiting would close sockets, and the other ranks' complaints would hide this one
        return
    connection.send_bytes(report)
    if dist.is_initialized():
        dist.barrier()  # a rank that leaves early breaks the last collective of the others
        dist.destroy_process_group()
