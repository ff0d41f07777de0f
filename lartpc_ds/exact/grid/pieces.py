"""Kernels work on as many rows of a map at once as a core's cache holds, or as keep a device busy.

Rejected: whole maps, whose intermediate results would stand beside the largest map of the network.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import record_function

__all__ = ["CACHED_BYTES", "IN_PIECES", "has_no_data", "in_pieces", "rows_at_once"]

IN_PIECES = "lartpc_ds: in pieces"
"""The name that loops over such rows have in a profile of torch."""

CACHED_BYTES = 3 << 18
"""The bytes that a core's cache holds."""
_DEVICE_BYTES = 1 << 26


def has_no_data(x: Tensor) -> bool:
    """Return whether x is only a shape, on the meta device or in a trace."""
    return x.is_meta or isinstance(x, FakeTensor)


def rows_at_once(x: Tensor, row_bytes: int, cpu_bytes: int = CACHED_BYTES) -> int:
    """Return how many rows of `row_bytes` each to work on at once.

    Of a map without data it is an eighth, because its trace counts bytes and not seconds.
    """
    if has_no_data(x):
        return max(1, -(-x.nbytes // max(1, 8 * row_bytes)))
    at_once = cpu_bytes if x.device == torch.device("cpu") else _DEVICE_BYTES
    return max(1, at_once // max(1, row_bytes))


def in_pieces() -> record_function:
    """Return a label around a loop over such rows, for torch's profiler and for whatever watches operators.

    A trace without data sees larger pieces and learns from the label that the real ones would be in a cache.
    """
    return record_function(IN_PIECES)
