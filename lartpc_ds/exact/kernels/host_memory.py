"""The memory of a host: what a CPU would keep of events that all have another size, and what a container allows.

oneDNN makes a kernel for every shape and keeps the last 1024, and torch keeps as many again. On patches every event has
shapes of its own, so they are never used again: a ResNet-18 grew by 15 MiB per event. glibc keeps freed memory, and
maps of ever other sizes leave it in pieces that fit no later map: after 16 events it held three times what was in use.
Rejected: a lower threshold from which glibc asks the kernel for every map, which takes longer and keeps more.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

__all__ = ["CONTAINER_USE", "container_limit_bytes", "give_back", "keep_few_kernels"]

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
CONTAINER_USE = Path("/sys/fs/cgroup/memory.current")
"""The file with the bytes that the processes of a container use, where it has a limit."""

_KERNELS = "256"


def keep_few_kernels() -> None:
    """Let oneDNN and torch keep few kernels, unless the user says how many; call it before the first convolution."""
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, _KERNELS)


def container_limit_bytes() -> int | None:
    """Return how much memory the container of this process may use; None if it has no limit."""
    limit = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.exists() else "max"
    return int(limit) if limit.isdigit() else None


def give_back() -> None:
    """Give freed memory back to the system, where the C library can."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
