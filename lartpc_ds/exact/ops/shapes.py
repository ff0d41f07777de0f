"""Functions that only rearrange a map: the dimensions that are cut move along, or the call is refused.

A function of this family may run on a part of a map only if it does the same there as on the whole map. Rejected:
gathering the map for every other reshape, which would hide from the user what it costs.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, Function, Run
from lartpc_ds.exact.ops.operator import (
    CallSite,
    Numbers,
    Operator,
    Result,
    TileCallSite,
    cut_dims,
    everywhere,
    filled,
    map_cut,
)
from lartpc_ds.exact.ops.pointwise import Realign, over_uncut
from lartpc_ds.exact.ops.resampling import sliced
from lartpc_ds.exact.ops.windows import same_pixels

__all__ = ["OPERATORS"]

Dims = tuple[int, ...]


def permute(site: CallSite, function: Function, input: Tensor, *dims: Any) -> Result:
    """Let the dimensions that are cut move along."""
    cut = cut_dims(site, input)
    order = [dim % input.ndim for dim in (dims[0] if isinstance(dims[0], tuple | list) else dims)]
    return site.cut_like(function(input, *dims), input, tuple(order.index(dim) for dim in cut)), None


def transpose(site: CallSite, function: Function, input: Tensor, dim0: int, dim1: int) -> Result:
    """Let the dimensions that are cut move along."""
    cut = cut_dims(site, input)
    swap = {dim0 % input.ndim: dim1 % input.ndim, dim1 % input.ndim: dim0 % input.ndim}
    return site.cut_like(function(input, dim0, dim1), input, tuple(swap.get(dim, dim) for dim in cut)), None


def movedim(site: CallSite, function: Function, input: Tensor, source: Any, destination: Any) -> Result:
    """Let the dimensions that are cut move along."""
    cut, y = cut_dims(site, input), function(input, source, destination)
    sources, targets = (
        [end % input.ndim for end in ((ends,) if isinstance(ends, int) else ends)] for ends in (source, destination)
    )
    order = [dim for dim in range(input.ndim) if dim not in sources]
    for target, moved in sorted(zip(targets, sources, strict=True)):
        order.insert(target, moved)
    return site.cut_like(y, input, tuple(order.index(dim) for dim in cut)), None


def reshape(site: CallSite, function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Reshape a part as the whole map is reshaped.

    A dimension that is cut stays one of its own, or rows and columns become one.
    """
    dims, size, before = (
        cut_dims(site, input),
        site.size_of(input),
        tuple(input.shape),
    )  # `unsqueeze_` changes the shape
    y = function(input, *args, **kwargs)
    after = _dims_after(dims, size, before, y.shape)
    if after is None:
        raise site.refuse(
            f"reshapes {before} to {tuple(y.shape)}: mixes {site.words.lines}, which are cut into {site.words.parts}, "
            f"with others; {site.words.pool}, or {site.words.way_out}"
        )
    return site.cut_like(y, input, after), None


def _dims_after(dims: Dims, size: Dims, before: Sequence[int], after: Sequence[int]) -> Dims | None:
    """Return where the cut dimensions of a whole map of this size are after a reshape, or None if nowhere."""
    kept = [_kept(before, dim, after) for dim in dims]
    if None not in kept:
        return tuple(dim for dim in kept if dim is not None)
    if len(dims) != 2:
        return None
    preceding = math.prod(before[: dims[0]])
    places = [place for place in range(len(after)) if math.prod(after[:place]) == preceding]
    if dims[0] == dims[1]:
        apart = [place for place in places if tuple(after[place : place + 2]) == size]
        return (apart[0], apart[0] + 1) if apart else None
    together = [place for place in places if after[place] == math.prod(size)]
    return (together[0], together[0]) if together and dims[1] == dims[0] + 1 else None


def _kept(before: Sequence[int], dim: int, after: Sequence[int]) -> int | None:
    """Return where a dimension is found again: it is as long, with as many elements before it."""
    for place, length in enumerate(after):
        if length == before[dim] and math.prod(after[:place]) == math.prod(before[:dim]):
            return place
    return None


def squeeze(site: CallSite, function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Drop named dimensions only: without a name, a part of one row would lose it."""
    if not args and not kwargs:
        raise site.refuse(f"names no dimension, and would drop the rows of a {site.words.part} that has one; name it")
    return reshape(site, function, input, *args, **kwargs)


def _taken_apart(site: CallSite, input: Tensor, dim: int) -> Dims:
    """Return where the dimensions that are cut are once `dim`, which is none of them, has gone."""
    cut = cut_dims(site, input)
    if dim % input.ndim in cut:
        raise site.refuse(
            f"takes single {site.words.lines} of a map that is cut into {site.words.parts}; {site.words.way_out}"
        )
    return tuple(cut_dim - (dim % input.ndim < cut_dim) for cut_dim in cut)


def unbind(site: CallSite, function: Function, input: Tensor, dim: int = 0) -> Result:
    """Take a map apart along a dimension that is not cut, which goes."""
    left = _taken_apart(site, input, dim)
    return tuple(site.cut_like(part, input, left) for part in function(input, dim)), None


def select(site: CallSite, function: Function, input: Tensor, dim: int, index: int) -> Result:
    """Take one entry of a dimension that is not cut, which goes."""
    left = _taken_apart(site, input, dim)
    return site.cut_like(function(input, dim, index), input, left), None


def chunk(site: CallSite, function: Function, input: Tensor, *sizes: Any, dim: int = 0, **kwargs: Any) -> Result:
    """Split a map along a dimension that is not cut, which stays."""
    cut = cut_dims(site, input)
    if len(sizes) == 2:
        dim = sizes[1]
    if dim % input.ndim in cut:
        raise site.refuse(f"splits {site.words.lines} of a map that is cut into {site.words.parts}")
    parts = function(input, *sizes[:1], dim=dim, **kwargs)
    return tuple(site.cut_like(part, input, cut) for part in parts), None


def repeated(site: CallSite, function: Function, input: Tensor, *sizes: Any) -> Result:
    """Add new dimensions before, and repeat others; rows and columns are not repeated."""
    cut, y = cut_dims(site, input), function(input, *sizes)
    dims = tuple(dim + y.ndim - input.ndim for dim in cut)
    if any(y.shape[dim] != input.shape[before] for dim, before in zip(dims, cut, strict=True)):
        raise site.refuse(f"repeats {site.words.lines} of a map that is cut into {site.words.parts}")
    return site.cut_like(y, input, dims), None


def expand_as(site: CallSite, function: Function, input: Tensor, other: Tensor) -> Result:
    """Repeat one value per channel for every pixel of a part of a map."""
    cut, missing = cut_dims(site, other), other.ndim - input.ndim
    if site.dims_of(input) is not None or any(dim >= missing and input.shape[dim - missing] > 1 for dim in cut):
        raise site.refuse(f"expands a tensor that has {site.words.lines} already")
    return site.cut_like(function(input, other), other, cut), None


def _parts_of(site: CallSite, input: Tensor, index: Any) -> list[Any]:
    """Return what an index asks of each dimension, new dimensions (None) among them."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(part, bool) or not isinstance(part, int | slice | type(None) | type(Ellipsis)) for part in parts):
        raise site.refuse(
            f"indexes a map that is cut into {site.words.parts} by something other than numbers and slices"
        )
    named = len([part for part in parts if part is not None and part is not Ellipsis])
    place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[place : place + 1] = [slice(None)] * (input.ndim - named)
    return parts


def _indexed(site: CallSite, input: Tensor, parts: Sequence[Any]) -> tuple[Dims, dict[int, slice]]:
    """Return where the dimensions that are cut are after indexing, and the slices that take a part of one of them."""
    cut, source, target = cut_dims(site, input), 0, 0
    places: dict[int, int] = {}
    slices: dict[int, slice] = {}
    for part in parts:
        if isinstance(part, slice):
            if source in cut and part != slice(None):
                slices[source] = part
            places[source] = target
        source, target = source + (part is not None), target + (not isinstance(part, int))
    if any(dim not in places for dim in cut):
        raise site.refuse(f"takes single {site.words.lines} of a map that is cut into {site.words.parts}")
    return tuple(places[dim] for dim in cut), slices


def getitem_on_tiles(site: TileCallSite, function: Function, input: Tensor, index: Any) -> Result:
    """Plan an index; rows and columns may be sliced, and then some come from other ranks."""
    parts = _parts_of(site, input, index)
    dims, slices = _indexed(site, input, parts)
    cut, run = site.cut_of(input), None
    assert cut is not None
    if slices:
        if None in parts:
            raise site.refuse("takes a part of the rows or columns and adds a dimension; do one after the other")
        cut, run = sliced(site, input, cut, slices)
    return site.mark(function(input, index), Cut((dims[0], dims[1]), cut.bounds)), run


def getitem_of_others(site: CallSite, function: Function, input: Tensor, index: Any) -> Result:
    """Take the whole of the dimensions that are cut, and any part of the others."""
    dims, slices = _indexed(site, input, _parts_of(site, input, index))
    if slices:
        raise site.refuse(f"takes a part of the {site.words.lines}; {site.words.way_out}")
    return site.cut_like(function(input, index), input, dims), None


def pixel_shuffle(site: TileCallSite, function: Function, input: Tensor, upscale_factor: int) -> Result:
    """Let every pixel become a square of its tile."""
    cut = map_cut(site, input)
    rows, cols = (tuple(bound * upscale_factor for bound in bounds) for bounds in cut.bounds)
    return site.mark(function(input, upscale_factor), Cut(cut.dims, (rows, cols))), None


def pixel_unshuffle(site: TileCallSite, function: Function, input: Tensor, downscale_factor: int) -> Result:
    """Let every square become a pixel; a square that lies on two tiles goes to the first."""
    cut, y = map_cut(site, input), function(input, downscale_factor)
    rows, cols = (
        filled(site, [-(-bound // downscale_factor) for bound in cut.bounds[axis]], y.shape[2 + axis], axis)
        for axis in (0, 1)
    )
    wide = (tuple(bound * downscale_factor for bound in rows), tuple(bound * downscale_factor for bound in cols))
    moved: Run | None = None if wide == cut.bounds else Realign(cut, 4, ((0, same_pixels(cut.bounds, wide)),), ())
    return site.mark(y, Cut(cut.dims, (rows, cols))), moved


_moving = partial(everywhere, may_be_unplanned=True)
OPERATORS = {
    "permute": _moving(permute),
    **dict.fromkeys(("transpose", "swapaxes"), _moving(transpose)),
    **dict.fromkeys(("movedim", "moveaxis"), _moving(movedim)),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten"), _moving(reshape, numbers=Numbers.OWN)),
    "unsqueeze": _moving(reshape),
    "squeeze": _moving(squeeze),
    **dict.fromkeys(("expand", "repeat"), _moving(repeated, numbers=Numbers.OWN)),
    "expand_as": _moving(expand_as, joins=True),
    "getitem": Operator(
        on_tiles=getitem_on_tiles,
        on_strips=getitem_of_others,
        on_patches=getitem_of_others,
        joins=True,
        may_be_unplanned=True,
    ),
    **dict.fromkeys(("chunk", "split", "tensor_split"), _moving(chunk)),
    "unbind": _moving(unbind),
    "select": _moving(select),
    **dict.fromkeys(("narrow", "index_select"), _moving(over_uncut)),
    "pixel_shuffle": Operator(on_tiles=pixel_shuffle, may_be_unplanned=True),
    "pixel_unshuffle": Operator(on_tiles=pixel_unshuffle, may_be_unplanned=True),
}
