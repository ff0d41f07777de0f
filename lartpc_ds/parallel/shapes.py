"""How functions that only rearrange a tensor move its cut dimensions along, or are refused."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lartpc_ds.parallel.cuts import Cut
from lartpc_ds.parallel.site import Result, Rule, Site

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
    """Rows and columns must stay dimensions of their own: then a tile is reshaped as the whole is."""
    cut, before = _cut(site, input), tuple(input.shape)  # `unsqueeze_` changes it
    y = function(input, *args, **kwargs)
    dims = [kept(before, dim, y.shape) for dim in cut.dims]
    if dims[0] is None or dims[1] is None:
        raise site.refuse(
            f"reshapes {before} to {tuple(y.shape)}: mixes rows or columns, which are cut into tiles, with "
            "others; pool them to one pixel first (AdaptiveAvgPool2d(1)), or leave the tiles with layout.gather_at"
        )
    return site.mark(y, Cut((dims[0], dims[1]), cut.bounds)), None


def kept(before: Sequence[int], dim: int, after: Sequence[int]) -> int | None:
    """Where a dimension is found again: as long, with as many elements before it."""
    for place, length in enumerate(after):
        if length == before[dim] and math.prod(after[:place]) == math.prod(before[:dim]):
            return place
    return None


def getitem(site: Site, function: Any, input: Tensor, index: Any) -> Result:
    """Rows and columns must be taken whole."""
    cut = _cut(site, input)
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(one, bool) or not isinstance(one, int | slice | type(None) | type(Ellipsis)) for one in parts):
        raise site.refuse("indexes a map that is cut into tiles by something other than numbers and slices")
    named = len([part for part in parts if part is not None and part is not Ellipsis])
    place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[place : place + 1] = [slice(None)] * (input.ndim - named)
    source, target, places = 0, 0, {}
    for part in parts:
        if isinstance(part, slice):
            if source in cut.dims and part != slice(None):
                raise site.refuse("takes a part of the rows or columns of a map that is cut into tiles")
            places[source] = target
        source, target = source + (part is not None), target + (not isinstance(part, int))
    if any(dim not in places for dim in cut.dims):
        raise site.refuse("takes a single row or column of a map that is cut into tiles")
    return site.mark(function(input, index), Cut((places[cut.dims[0]], places[cut.dims[1]]), cut.bounds)), None


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
}
