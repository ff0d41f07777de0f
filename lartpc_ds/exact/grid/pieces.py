"""How much of a map to work on at once: on CPU what a core's cache holds, elsewhere what keeps a device busy."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["CACHED_BYTES", "has_no_data", "in_pieces", "rows_at_once", "works_in_pieces"]

_IN_PIECES = ContextVar("in_pieces", default=False)

CACHED_BYTES = 3 << 18
"""What a core's cache holds."""
_DEVICE_BYTES = 1 << 26


def has_no_data(x: Tensor) -> bool:
    """Is x a shape only, on the meta device or in a trace?"""
    return x.is_meta or isinstance(x, FakeTensor)


def rows_at_once(x: Tensor, row_bytes: int, cpu_bytes: int = CACHED_BYTES) -> int:
    """How many rows of so many bytes; an eighth of a map without data, whose trace counts bytes, not seconds."""
    if has_no_data(x):
        return max(1, -(-x.nbytes // max(1, 8 * row_bytes)))
    at_once = cpu_bytes if x.device == torch.device("cpu") else _DEVICE_BYTES
    return max(1, at_once // max(1, row_bytes))


@contextmanager
def in_pieces() -> Iterator[None]:
    """Around a loop over such rows: a trace, whose pieces are larger, asks whether they would be in a cache."""
    token = _IN_PIECES.set(True)
    try:
        yield
    finally:
        _IN_PIECES.reset(token)


def works_in_pieces() -> bool:
    """Is this call made inside `in_pieces`?"""
    return _IN_PIECES.get()
