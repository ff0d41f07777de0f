"""Matrix products whose operands have a tile's pixels as one dimension: attention, and pooling by weights.

A product over pixels is the sum of what each rank's pixels give. A product that keeps the pixels of its first operand
is made for a tile's own pixels; if its second operand has pixels too, every rank gathers those of the whole map, in its
order.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, Function
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.kernels.collectives import own_part, sum_over_ranks
from lartpc_ds.exact.ops.gathering import Gather
from lartpc_ds.exact.ops.operator import Operator, Result, TileCallSite

__all__ = ["OPERATORS"]

_UNCOVERED = (
    "multiplies maps whose pixels are cut into tiles in a way that is not covered; leave the tiles before it with "
    "layout.gather_at"
)


@dataclass(frozen=True, slots=True)
class SumOverPixels:
    """A product over the pixels, which are the last dimension of the first operand, the last but one of the second."""

    cut: Cut
    """The cut of the first operand's pixels."""
    whole: tuple[bool, bool]
    """For each operand, whether every rank has it whole."""

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the product, which is the same on every rank."""
        operands = []
        for x, whole, dim in zip(args[:2], self.whole, (-1, -2), strict=True):
            place = x.ndim + dim
            cut = Cut((place, place), self.cut.bounds)
            operands.append(own_part(x, cut, tiles.row, tiles.col, x.ndim) if whole else x)
        y = function(*operands, *args[2:], **kwargs)
        return sum_over_ranks(y.to(torch.promote_types(y.dtype, torch.float32)), tiles.group).to(y.dtype)


@dataclass(frozen=True, slots=True)
class Gathered:
    """A function that takes some operands (by number) whole on every rank, and of its mask a part."""

    cuts: tuple[tuple[int, Cut], ...]
    mask: Cut | None = None

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return this rank's outputs."""
        operands = list(args)
        for number, cut in self.cuts:
            operands[number] = _gathered(tiles, operands[number], cut)
        if self.mask is None:
            return function(*operands, **kwargs)  # type: ignore[no-any-return]
        mask = args[3] if len(args) > 3 else kwargs["attn_mask"]
        rows = Cut((mask.ndim - 2, mask.ndim - 2), self.mask.bounds)
        named = {**kwargs, "attn_mask": own_part(mask, rows, tiles.row, tiles.col, mask.ndim)}
        return function(*operands[:3], **named)  # type: ignore[no-any-return]


def _gathered(tiles: Tiles, x: Tensor, cut: Cut) -> Tensor:
    """Return all pixels, which are one dimension of x, in the order of the whole map."""
    (top, bottom), (left, right) = cut.tile(tiles.row, tiles.col)
    moved = x.movedim(cut.dims[0], -1)
    pixels = moved.reshape(len(x) if x.ndim > 1 else 1, -1, bottom - top, right - left)
    whole = Gather.of(cut)(tiles, None, pixels)
    return whole.reshape(*moved.shape[:-1], -1).movedim(-1, cut.dims[0])


def _place(site: TileCallSite, x: Tensor) -> tuple[Cut | None, int]:
    """Return the cut of a tensor and the dimension of its pixels, counted from the end.

    The pixels must be one dimension, which is not the first.
    """
    cut = site.cut_of(x)
    if cut is None:
        return None, 0
    if not cut.flat or cut.dims[0] == 0 or cut.dims[0] < x.ndim - 2:
        raise site.refuse(_UNCOVERED)
    return cut, cut.dims[0] - x.ndim


def matmul(site: TileCallSite, function: Function, input: Tensor, other: Tensor) -> Result:
    """Plan a product over pixels, for every pixel, or between all pairs of pixels."""
    if _same_pixels(site, input, other):
        return site.mark(function(input, other), site.cut_of(input)), None
    (first, at), (second, to) = _place(site, input), _place(site, other)
    y = function(input, other)
    over = first if at == -1 else second if to == -2 and at != -2 else None
    if over is not None:
        if (first and at != -1) or (second and (to != -2 or second.bounds != over.bounds)):
            raise site.refuse(_UNCOVERED)
        return y, SumOverPixels(over, (first is None, second is None))
    if first is not None:
        site.mark(y, Cut((y.ndim - 2, y.ndim - 2), first.bounds))
        return y, Gathered(((1, second),)) if second else None
    assert second is not None
    return site.mark(y, Cut((y.ndim - 1, y.ndim - 1), second.bounds)), None


def _same_pixels(site: TileCallSite, input: Tensor, other: Tensor) -> bool:
    """Return whether each pixel has matrices of its own, or a row that meets one matrix."""
    cut, of_other = site.cut_of(input), site.cut_of(other)
    if cut is None or max(cut.dims) >= input.ndim - 2 + (other.ndim == 2 and not cut.flat):
        return False
    return other.ndim == 2 if of_other is None else of_other == cut and input.ndim == other.ndim


def attention(
    site: TileCallSite, function: Function, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Result:
    """Plan F.scaled_dot_product_attention, with all keys and values for the queries of a tile."""
    options = dict(zip(("attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    if options.get("dropout_p") or options.get("is_causal"):
        raise site.refuse(
            "over the pixels of a map that is cut into tiles is covered without dropout and causality only"
        )
    places = [_place(site, x) for x in (query, key, value)]
    if any(cut is not None and at != -2 for cut, at in places):
        raise site.refuse(_UNCOVERED)
    y, mask, (queries, _) = function(query, key, value, *args, **kwargs), options.get("attn_mask"), places[0]
    if mask is not None and site.cut_of(mask) is not None:
        raise site.refuse(_UNCOVERED)
    gathered = tuple((number, cut) for number, (cut, _) in enumerate(places) if number and cut is not None)
    if queries is not None:
        site.mark(y, Cut((y.ndim - 2, y.ndim - 2), queries.bounds))
    masked = queries if mask is not None and mask.shape[-2] > 1 else None
    return y, Gathered(gathered, masked) if gathered or masked else None


_MATMUL = Operator(on_tiles=matmul, joins=True)
OPERATORS = {
    "matmul": _MATMUL,
    "bmm": _MATMUL,
    "scaled_dot_product_attention": Operator(on_tiles=attention, joins=True),
}
