"""How functions that only rearrange a tensor move its cut dimensions along, or are refused."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut
from lartpc_ds.exact.grid.site import Result, Rule, Site, filled, map_cut
from lartpc_ds.exact.grid.windows import Same, plan
from lartpc_ds.exact.ops.operators import Realign
from lartpc_ds.exact.ops.selection_rules import sliced

__all__ = ["SHAPE_RULES", "kept"]


def _cut(site: Site, x: Tensor) -> Cut:
    cut = site.cut_of(x)
    if cut is None:
        raise site.refuse("uses a map that is cut into tiles to rearrange a whole tensor")
    return cut


def permute(site: Site, function: Any, input: Tensor, *dims: Any) -> Result:
    """The cut moves along."""
    cut, y = _cut(site, input), function(input, *dims)
    order = [dim % input.ndim for dim in (dims[0] if isinstance(dims[0], tuple | list) else dims)]
    return site.mark(y, Cut((order.index(cut.dims[0]), order.index(cut.dims[1])), cut.bounds)), None


def transpose(site: Site, function: Any, input: Tensor, dim0: int, dim1: int) -> Result:
    """The cut moves along."""
    cut = _cut(site, input)
    swap = {dim0 % input.ndim: dim1 % input.ndim, dim1 % input.ndim: dim0 % input.ndim}
    dims = swap.get(cut.dims[0], cut.dims[0]), swap.get(cut.dims[1], cut.dims[1])
    return site.mark(function(input, dim0, dim1), Cut(dims, cut.bounds)), None


def reshape(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Rows and columns stay dimensions of their own, or are one with each other: a tile is reshaped as the whole is."""
    cut, before = _cut(site, input), tuple(input.shape)  # `unsqueeze_` changes it
    y = function(input, *args, **kwargs)
    dims = _moved(cut, before, y.shape)
    if dims is None:
        raise site.refuse(
            f"reshapes {before} to {tuple(y.shape)}: mixes rows or columns, which are cut into tiles, with "
            "others; pool them to one pixel first (AdaptiveAvgPool2d(1)), or leave the tiles with layout.gather_at"
        )
    return site.mark(y, Cut(dims, cut.bounds)), None


def _moved(cut: Cut, before: Sequence[int], after: Sequence[int]) -> tuple[int, int] | None:
    """Where rows and columns are after a reshape."""
    rows, cols = (kept(before, dim, after) for dim in cut.dims)
    if rows is not None and cols is not None:
        return rows, cols
    first, preceding = cut.dims[0], math.prod(before[: cut.dims[0]])
    places = [place for place in range(len(after)) if math.prod(after[:place]) == preceding]
    if cut.flat:
        apart = [place for place in places if tuple(after[place : place + 2]) == cut.size]
        return (apart[0], apart[0] + 1) if apart else None
    together = [place for place in places if after[place] == math.prod(cut.size)]
    return (together[0], together[0]) if together and cut.dims[1] == first + 1 else None


def kept(before: Sequence[int], dim: int, after: Sequence[int]) -> int | None:
    """Where a dimension is found again: as long, with as many elements before it."""
    for place, length in enumerate(after):
        if length == before[dim] and math.prod(after[:place]) == math.prod(before[:dim]):
            return place
    return None


def getitem(site: Site, function: Any, input: Tensor, index: Any) -> Result:
    """Rows and columns may be sliced; then some come from other ranks."""
    cut = _cut(site, input)
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(one, bool) or not isinstance(one, int | slice | type(None) | type(Ellipsis)) for one in parts):
        raise site.refuse("indexes a map that is cut into tiles by something other than numbers and slices")
    named = len([part for part in parts if part is not None and part is not Ellipsis])
    place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[place : place + 1] = [slice(None)] * (input.ndim - named)
    source, target, places, slices = 0, 0, {}, {}
    for part in parts:
        if isinstance(part, slice):
            if source in cut.dims and part != slice(None):
                slices[source] = part
            places[source] = target
        source, target = source + (part is not None), target + (not isinstance(part, int))
    if any(dim not in places for dim in cut.dims):
        raise site.refuse("takes a single row or column of a map that is cut into tiles")
    run = None
    if slices:
        if None in parts:
            raise site.refuse("takes a part of the rows or columns and adds a dimension; do one after the other")
        cut, run = sliced(site, input, cut, slices)
    return site.mark(function(input, index), Cut((places[cut.dims[0]], places[cut.dims[1]]), cut.bounds)), run


def unbind(site: Site, function: Any, input: Tensor, dim: int = 0) -> Result:
    """Along a dimension that is not cut, which goes."""
    cut = _cut(site, input)
    if dim % input.ndim in cut.dims:
        raise site.refuse("takes rows or columns of a map that is cut into tiles apart")
    rows, cols = (one - (dim % input.ndim < one) for one in cut.dims)
    return tuple(site.mark(part, Cut((rows, cols), cut.bounds)) for part in function(input, dim)), None


def select(site: Site, function: Any, input: Tensor, dim: int, index: int) -> Result:
    """One of a dimension that is not cut, which goes."""
    cut = _cut(site, input)
    if dim % input.ndim in cut.dims:
        raise site.refuse("takes a single row or column of a map that is cut into tiles")
    rows, cols = (one - (dim % input.ndim < one) for one in cut.dims)
    return site.mark(function(input, dim, index), Cut((rows, cols), cut.bounds)), None


def along(site: Site, function: Any, input: Tensor, dim: int, *args: Any, **kwargs: Any) -> Result:
    """Some of a dimension that is not cut, which stays."""
    cut = _cut(site, input)
    if dim % input.ndim in cut.dims:
        raise site.refuse("takes some of the rows or columns of a map that is cut into tiles")
    return site.mark(function(input, dim, *args, **kwargs), cut), None


def movedim(site: Site, function: Any, input: Tensor, source: Any, destination: Any) -> Result:
    """The cut moves along."""
    cut, y = _cut(site, input), function(input, source, destination)
    sources, targets = (
        [one % input.ndim for one in ((ends,) if isinstance(ends, int) else ends)] for ends in (source, destination)
    )
    order = [dim for dim in range(input.ndim) if dim not in sources]
    for target, moved in sorted(zip(targets, sources, strict=True)):
        order.insert(target, moved)
    return site.mark(y, Cut((order.index(cut.dims[0]), order.index(cut.dims[1])), cut.bounds)), None


def repeated(site: Site, function: Any, input: Tensor, *sizes: Any) -> Result:
    """New dimensions before, and others repeated; rows and columns are not."""
    cut, y = _cut(site, input), function(input, *sizes)
    dims = cut.dims[0] + y.ndim - input.ndim, cut.dims[1] + y.ndim - input.ndim
    if any(y.shape[dim] != input.shape[before] for dim, before in zip(dims, cut.dims, strict=True)):
        raise site.refuse("repeats rows or columns of a map that is cut into tiles")
    return site.mark(y, Cut(dims, cut.bounds)), None


def per_pixel(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """On the channels of every pixel for itself."""
    cut = map_cut(site, input)
    return site.mark(function(input, *args, **kwargs), cut), None


def pixel_shuffle(site: Site, function: Any, input: Tensor, upscale_factor: int) -> Result:
    """A pixel becomes a square of its tile."""
    cut = map_cut(site, input)
    rows, cols = (tuple(bound * upscale_factor for bound in bounds) for bounds in cut.bounds)
    return site.mark(function(input, upscale_factor), Cut(cut.dims, (rows, cols))), None


def pixel_unshuffle(site: Site, function: Any, input: Tensor, downscale_factor: int) -> Result:
    """A square becomes a pixel; a square that lies on two tiles goes to the first."""
    cut, y = map_cut(site, input), function(input, downscale_factor)
    rows, cols = (
        filled(site, [-(-bound // downscale_factor) for bound in cut.bounds[axis]], y.shape[2 + axis], axis)
        for axis in (0, 1)
    )
    wide = tuple(tuple(bound * downscale_factor for bound in bounds) for bounds in (rows, cols))
    axes = [plan(Same(target), source, target) for source, target in zip(cut.bounds, wide, strict=True)]
    moved = None if wide == cut.bounds else Realign(cut, 4, ((0, (axes[0], axes[1])),), ())
    return site.mark(y, Cut(cut.dims, (rows, cols))), moved


def chunk(site: Site, function: Any, input: Tensor, *sizes: Any, dim: int = 0, **kwargs: Any) -> Result:
    """Along a dimension that is not cut."""
    cut = _cut(site, input)
    if len(sizes) == 2:
        dim = sizes[1]
    if dim % input.ndim in cut.dims:
        raise site.refuse("splits rows or columns of a map that is cut into tiles")
    return tuple(site.mark(part, cut) for part in function(input, *sizes[:1], dim=dim, **kwargs)), None


def expand_as(site: Site, function: Any, input: Tensor, other: Tensor) -> Result:
    """One value a channel, repeated for every pixel of a tile."""
    cut = _cut(site, other)
    missing = other.ndim - input.ndim
    if site.cut_of(input) is not None or any(dim >= missing and input.shape[dim - missing] > 1 for dim in cut.dims):
        raise site.refuse("expands a tensor that has rows or columns already")
    return site.mark(function(input, other), cut), None


def squeeze(site: Site, function: Any, input: Tensor, *dims: Any) -> Result:
    """Named dimensions only: without a name, a tile of one row would lose it."""
    if not dims:
        raise site.refuse("names no dimension, and would drop the rows of a tile that has one; name it")
    return reshape(site, function, input, *dims)


SHAPE_RULES: dict[str, Rule] = {
    "permute": permute,
    "transpose": transpose,
    "swapaxes": transpose,
    "reshape": reshape,
    "view": reshape,
    "flatten": reshape,
    "unflatten": reshape,
    "unsqueeze": reshape,
    "squeeze": squeeze,
    "expand_as": expand_as,
    "getitem": getitem,
    "chunk": chunk,
    "split": chunk,
    "tensor_split": chunk,
    "unbind": unbind,
    "select": select,
    "narrow": along,
    "index_select": along,
    "movedim": movedim,
    "moveaxis": movedim,
    "expand": repeated,
    "repeat": repeated,
    **dict.fromkeys("local_response_norm channel_shuffle native_channel_shuffle".split(), per_pixel),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
}
