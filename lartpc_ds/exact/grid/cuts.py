"""A `Cut` says how a map is cut into tiles; a `Call` is what a trace leaves behind for the ranks.

A trace works on the whole image and on no rank's tile, so a cut and a call hold the bounds of all tiles. A rank reads
its own part off them. Rejected: a list of calls per rank, which would make a plan as large as its grid.
"""

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
from lartpc_ds.exact.grid.windows import AxisPlan, Rect, TileView, tile_of
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
"""What identifies a call at run time: the function's name and its tensors' shapes without the batch."""

Plans = tuple[AxisPlan, AxisPlan]
"""The plans of one operator's rows and columns."""

Function = Callable[..., Any]
"""Any torch function."""

Run = Callable[..., Any]
"""What runs in the place of a function on tiles; it is called as run(tiles, function, *args, **kwargs)."""


class EmptyTile(UserError):
    """An operator would leave some rank without a pixel, or with fewer pixels than make a tile worthwhile."""

    layer = ""
    """This is the path of the module that made the call."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut says that `dims` are the row and the column dimension of a tensor and that it is cut at `bounds`.

    If `dims` names one dimension twice, that dimension has all pixels of a tile row by row, and likewise all pixels of
    the whole map.
    """

    dims: tuple[int, int]
    bounds: tuple[Bounds, Bounds]

    def tile(self, row: int, col: int) -> Rect:
        """Return the rows and the columns that the rank at (row, col) has."""
        return tile_of(self.bounds, row, col)

    def local_shape(self, shape: tuple[int, ...], row: int, col: int) -> tuple[int, ...]:
        """Return the shape of the tile at (row, col), for a whole tensor of `shape`."""
        local, tile = list(shape), self.tile(row, col)
        for dim in self.dims:
            local[dim] = 1
        for dim, (start, stop) in zip(self.dims, tile, strict=True):
            local[dim] *= stop - start
        return tuple(local)

    @property
    def size(self) -> tuple[int, int]:
        """The rows and columns of the whole map."""
        return self.bounds[0][-1], self.bounds[1][-1]

    @property
    def flat(self) -> bool:
        """Whether rows and columns are one dimension."""
        return self.dims[0] == self.dims[1]


@dataclass(frozen=True)
class Call:
    """One call of a torch function on a cut map: who made it, on which tensors, and what runs in its place on tiles."""

    owner: str
    name: str
    where: str
    tensors: tuple[tuple[tuple[int, ...], Cut | None], ...]
    """The shape and the cut of every tensor among the arguments."""
    run: Run | None
    """If this is None, torch's own function does the right thing on a tile."""
    numbers: tuple[Any, ...] = ()
    """The plain numbers among the arguments that must not depend on the tile."""
    all_numbers: tuple[Any, ...] = ()
    """All plain numbers among the arguments; they tell calls of one function on maps of one size apart."""
    reads: tuple[int, ...] = ()
    """The tensors among the arguments, by their numbers in the program."""
    gives: tuple[int, ...] = ()
    """The tensors among the results, by their numbers in the program."""
    source_numel: int = 0
    """The number of elements of the first argument."""
    given_numel: int = 0
    """The number of elements of all results together."""

    @property
    def is_cut(self) -> bool:
        """Whether the call touches a map that is cut."""
        return any(cut is not None for _, cut in self.tensors)

    def key(self, row: int, col: int) -> Key:
        """Return the key of the call as the rank at (row, col) makes it."""
        shapes = (local_shape(shape, cut, row, col) for shape, cut in self.tensors)
        return self.name, tuple(shape[1:] for shape in shapes)


def local_shape(shape: tuple[int, ...], cut: Cut | None, row: int, col: int) -> tuple[int, ...]:
    """Return the shape of the tile at (row, col), which is `shape` itself if the tensor is not cut."""
    return shape if cut is None else cut.local_shape(shape, row, col)


def key_of(name: str, tensors: Iterable[Tensor]) -> Key:
    """Return the key of a call at run time."""
    return name, tuple(tuple(tensor.shape[1:]) for tensor in tensors)


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    """Return every tensor among the arguments, in a fixed order."""
    tensors: list[Tensor] = []
    _collect(args, tensors)
    _collect(kwargs, tensors)
    return tensors


def _collect(value: Any, tensors: list[Tensor]) -> None:
    """Append every tensor in `value`; torch's `tree_leaves` takes ten times as long for most arguments."""
    kind = type(value)
    if isinstance(value, Tensor):
        tensors.append(value)
    elif kind is tuple or kind is list:
        for part in value:
            _collect(part, tensors)
    elif kind is dict:
        for part in value.values():
            _collect(part, tensors)
    elif kind not in _NO_TENSOR:
        tensors += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def numbers_of(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return every plain number among the arguments, in a fixed order; numbers of numpy and of slices count, too."""
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
def _cached_view(plans: Plans, row: int, col: int) -> TileView:
    return TileView.of(*plans, row, col)


def view_of(plans: Plans, tiles: Tiles) -> TileView:
    """Return this rank's view of an operator."""
    return _cached_view(plans, tiles.row, tiles.col)
