"""What a CPU would keep of events that all have another size: kernels for every shape, and memory in pieces.

oneDNN makes a kernel for every shape and keeps the last 1024, and torch keeps as many again. On patches every event has
shapes of its own, so they are never used again: a ResNet-18 grew by 15 MiB per event. glibc keeps freed memory, and
maps of ever other sizes leave it in pieces that fit no later map: after 16 events it held three times what was in use.
Rejected: a lower threshold from which glibc asks the kernel for every map, which takes longer and keeps more.
"""

import ctypes
import os
from functools import cache

__all__ = ["give_back", "keep_few_kernels"]

_KERNELS = "256"


def keep_few_kernels() -> None:
    """Let oneDNN and torch keep few kernels, unless the user says how many; call it before the first convolution."""
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, _KERNELS)


def give_back() -> None:
    """Give freed memory back to the system, where the C library can."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
