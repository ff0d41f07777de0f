"""The results of operators on meta tensors are remembered, because only shapes, strides and dtypes count.

torch computes them in Python, in a tenth of a millisecond up to several for a norm, and a plan asks for the same again
for every tile, mode and repeated block. Operators that return views, change their arguments or draw numbers are called
each time. Rejected: remembering whole modules, whose `forward` may depend on more than shapes.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["result_on_meta"]


class _Kept(NamedTuple):
    """A meta tensor without its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


def result_on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of `func` for arguments whose tensors are all on the meta device."""
    if not _is_pure(func):
        return func(*args, **kwargs)
    try:
        kept = _remembered(func, _key(args), _key(tuple(kwargs.items())))
    except TypeError:  # an argument is not a plain value
        return func(*args, **kwargs)
    return _made(kept)


@lru_cache(maxsize=1024)
def _is_pure(func: Any) -> bool:
    values = (*func._schema.arguments, *func._schema.returns)
    random = torch.Tag.nondeterministic_seeded in func.tags
    return not random and func not in _VIEWS and all(value.alias_info is None for value in values)


_VIEWS = frozenset((torch.ops.aten._unsafe_view.default,))
"""Operators that return a view and do not say so."""


def _key(value: Any) -> Any:
    """Return a key that is equal for arguments that give the same; 1, 1.0 and True do not."""
    if isinstance(value, Tensor):
        if not value.is_meta or value.dtype.is_complex or value.layout is not torch.strided:
            raise TypeError("more than shape, strides and dtype count")
        return _Kept(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, tuple | list):
        return type(value), tuple(_key(part) for part in value)
    return type(value), value


def _made(key: Any) -> Any:
    """Return arguments or results from a key; this is the inverse of `_key`."""
    if isinstance(key, _Kept):
        return key.make()
    kind, value = key
    return kind(_made(part) for part in value) if issubclass(kind, tuple | list) else value


@lru_cache(maxsize=1 << 14)
def _remembered(func: Any, args: Any, kwargs: Any) -> Any:
    return _key(func(*_made(args), **dict(_made(kwargs))))
