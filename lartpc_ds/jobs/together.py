"""Processes for measurements, which share the cores of this machine and run to their end.

They are started without the deepspeed launcher, which would add seconds to each of many short runs.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["KEPT", "PINNED", "RanksFailed", "run_together"]

PINNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Settings of glibc by which every map comes from the kernel and goes back to it."""
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Settings of glibc by which maps of up to 32 MiB, the most that it allows, stay with the process."""


class RanksFailed(RuntimeError):
    """A process of a measurement failed; the message has the end of its stderr."""


def run_together(module: str, arguments: Sequence[str], ranks: int, variables: Mapping[str, str]) -> list[Any]:
    """Run `python -m module arguments` on each rank; returns the JSON in the last line of each.

    The ranks share the cores evenly.

    Raises:
        RanksFailed: one of them failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    common = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",  # the host's own name need not resolve
        "OMP_NUM_THREADS": threads,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise RanksFailed(f"{module} {' '.join(arguments)} failed:\n{errors[-4000:]}")
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]
