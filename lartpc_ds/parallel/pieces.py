"""How much of a map to work on at once: on CPU what a core's cache holds, elsewhere what keeps a device busy."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["has_no_data", "rows_at_once"]

_CPU_BYTES = 3 << 18
_DEVICE_BYTES = 1 << 26


def has_no_data(x: Tensor) -> bool:
    """Is x a shape only, on the meta device or in a trace?"""
    return x.is_meta or isinstance(x, FakeTensor)


def rows_at_once(x: Tensor, row_bytes: int, cpu_bytes: int = _CPU_BYTES) -> int:
    """How many rows of so many bytes; an eighth of a map without data, whose trace counts bytes, not seconds."""
    if has_no_data(x):
        return max(1, -(-x.nbytes // max(1, 8 * row_bytes)))
    at_once = cpu_bytes if x.device == torch.device("cpu") else _DEVICE_BYTES
    return max(1, at_once // max(1, row_bytes))
