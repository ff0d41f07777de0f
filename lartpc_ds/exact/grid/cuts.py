"""How a map is cut into tiles, while a model is traced; and the calls that the trace leaves behind for the ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import AxisPlan, TileView
from lartpc_ds.layout import Bounds

__all__ = [
    "Call",
    "Cut",
    "EmptyTile",
    "Function",
    "Key",
    "Plans",
    "Run",
    "key_of",
    "local_shape",
    "numbers_of",
    "tensors_of",
    "view_of",
]

_NO_TENSOR = frozenset((int, float, bool, str, slice, type(None), torch.dtype, torch.device))

Key = tuple[str, tuple[tuple[int, ...], ...]]
"""A call at run time: the function's name and its tensors' shapes without the batch."""

Plans = tuple[AxisPlan, AxisPlan]
"""Rows and columns of one operator."""

Function = Callable[..., Any]
"""A torch function."""

Run = Callable[..., Any]
"""What stands for a function on tiles: called as run(tiles, function, *args, **kwargs)."""


class EmptyTile(UserError):
    """An operator would leave some rank without a pixel, or with fewer than are worth a tile."""

    layer = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """`dims` are the row and the column dimension of a tensor, `bounds` where they are cut.

    Where both are one dimension, it has all pixels of a tile row by row, and of the whole map likewise.
    """

    dims: tuple[int, int]
    bounds: tuple[Bounds, Bounds]

    def tile(self, row: int, col: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns that the rank at (row, col) has."""
        rows, cols = self.bounds
        return (rows[row], rows[row + 1]), (cols[col], cols[col + 1])

    def local_shape(self, shape: tuple[int, ...], row: int, col: int) -> tuple[int, ...]:
        """Of the tile at (row, col)."""
        local, tile = list(shape), self.tile(row, col)
        for dim in self.dims:
            local[dim] = 1
        for dim, (start, stop) in zip(self.dims, tile, strict=True):
            local[dim] *= stop - start
        return tuple(local)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the whole map."""
        return self.bounds[0][-1], self.bounds[1][-1]

    @property
    def flat(self) -> bool:
        """Are rows and columns one dimension?"""
        return self.dims[0] == self.dims[1]


@dataclass(frozen=True)
class Call:
    """One call of a torch function on a cut map: who made it, on what, and what stands for it on tiles."""

    owner: str
    name: str
    where: str
    tensors: tuple[tuple[tuple[int, ...], Cut | None], ...]
    """Shape and cut of every tensor among its arguments."""
    run: Run | None
    """None: torch's own function does the right thing on a tile."""
    numbers: tuple[Any, ...] = ()
    """Plain numbers among the arguments, as far as they must not depend on the tile."""
    told: tuple[Any, ...] = ()
    """All plain numbers among the arguments: they tell calls of one function on maps of one size apart."""
    reads: tuple[int, ...] = ()
    """The numbers, in the program, of the tensors among the arguments."""
    gives: tuple[int, ...] = ()
    """Those of the results."""
    given_numel: int = 0
    """The results' numbers of elements, summed."""

    @property
    def is_cut(self) -> bool:
        """Does it touch a map that is cut?"""
        return any(cut is not None for _, cut in self.tensors)

    def key(self, row: int, col: int) -> Key:
        """The call as the rank at (row, col) makes it."""
        shapes = (local_shape(shape, cut, row, col) for shape, cut in self.tensors)
        return self.name, tuple(shape[1:] for shape in shapes)


def local_shape(shape: tuple[int, ...], cut: Cut | None, row: int, col: int) -> tuple[int, ...]:
    """Of the tile at (row, col), if the tensor is cut."""
    return shape if cut is None else cut.local_shape(shape, row, col)


def key_of(name: str, tensors: Iterable[Tensor]) -> Key:
    """The call as it is made at run time."""
    return name, tuple(tuple(tensor.shape[1:]) for tensor in tensors)


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    """Every tensor among the arguments, in a fixed order."""
    found: list[Tensor] = []
    _collect(args, found)
    _collect(kwargs, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    """As torch's `tree_leaves`, which takes ten times as long for what functions are mostly called with."""
    kind = type(value)
    if isinstance(value, Tensor):
        found.append(value)
    elif kind is tuple or kind is list:
        for one in value:
            _collect(one, found)
    elif kind is dict:
        for one in value.values():
            _collect(one, found)
    elif kind not in _NO_TENSOR:
        found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def numbers_of(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Every plain number among the arguments, numpy's and those of slices included, in a fixed order."""
    numbers: list[Any] = []
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, np.ndarray):
            numbers += [leaf.shape, leaf.tobytes()]
        elif isinstance(leaf, slice):
            numbers.append((leaf.start, leaf.stop, leaf.step))
        elif isinstance(leaf, Number):
            numbers.append(leaf)
    return tuple(numbers)


@lru_cache(maxsize=4096)
def _here(plans: Plans, row: int, col: int) -> TileView:
    return TileView.of(*plans, row, col)


def view_of(plans: Plans, tiles: Tiles) -> TileView:
    """This rank's view of an operator."""
    return _here(plans, tiles.row, tiles.col)
