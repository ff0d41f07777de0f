"""Values that every rank has for its tile become values of the whole image, each by a function with its true adjoint.

Every rank computes the same loss from the same reduced values, so the adjoint of a sum over ranks is a sum over ranks.
A reduction over one axis alone leaves a value for each row or column. The values of all ranks are put together, so that
the result of any reduction is whole, and the same on every rank. Rejected: results that stay cut along the other axis,
which every later function would have to know.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.cuts import Cut
from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.tiles import Group, Tiles

__all__ = ["Over", "first_of_all", "lowest", "own_part", "sum_over_ranks"]


def _reduced(x: Tensor, group: Group) -> Tensor:
    """Return the sum over the ranks, and leave x as it is."""
    return group.all_reduce(x.clone(memory_format=torch.contiguous_format))


class _Sum(Messenger):
    """Any shape, summed over the ranks; its gradient is summed, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _reduced(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _reduced(gradients[0], ctx.group), None


def sum_over_ranks(x: Tensor, group: Group) -> Tensor:
    """Return the sum over the group, on every rank."""
    y: Tensor = _Sum.apply(x, group)  # type: ignore[no-untyped-call]
    return y


class _Gathered(Messenger):
    """(...) -> (ranks, ...); the gradient of a rank's own part is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_gather(x.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _reduced(gradients[0], ctx.group)[ctx.group.index], None


class _Tied(Messenger):
    """Each rank's extreme and its count of pixels -> the extreme; these pixels share its gradient evenly."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: Tensor, group: Group, op: Any) -> Tensor:
        extreme = group.all_reduce(value.clone(memory_format=torch.contiguous_format), op)
        mine = torch.where(value == extreme, count, 0).double()
        ctx.group = group
        ctx.save_for_backward(mine / _reduced(mine, group))
        return extreme

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (share,) = ctx.saved_tensors
        total = _reduced(gradients[0], ctx.group)
        return total * share.to(total.dtype), None, None, None


class _First(Messenger):
    """Each rank's extreme and its position -> both, for the first pixel that has it, which gets the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, position: Tensor, group: Group, op: Any) -> tuple[Tensor, Tensor]:
        extreme, first, mine = first_of_all(value, position, group, op)
        ctx.group = group
        ctx.save_for_backward(mine)
        ctx.mark_non_differentiable(first)
        return extreme, first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (mine,) = ctx.saved_tensors
        return _reduced(gradients[0], ctx.group) * mine, None, None, None


def first_of_all(value: Tensor, position: Tensor, group: Group, op: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the extreme of all ranks, the lowest position that has it, and whether this rank has that position."""
    extreme = group.all_reduce(value.clone(memory_format=torch.contiguous_format), op)
    nowhere = torch.iinfo(position.dtype).max
    first = group.all_reduce(torch.where(value == extreme, position, nowhere), dist.ReduceOp.MIN)
    return extreme, first, (value == extreme) & (position == first)


def lowest(dtype: torch.dtype) -> float | int:
    """Return a number such that no value of a map of this type is below it."""
    return -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def own_part(whole: Tensor, cut: Cut, row: int, col: int, ndim: int) -> Tensor:
    """Return the part of a whole tensor that meets, broadcast, the tile at (row, col) of a map of `ndim` dimensions."""
    missing, part = ndim - whole.ndim, whole
    if cut.flat:
        dim = cut.dims[0] - missing
        if dim < 0 or whole.shape[dim] == 1:
            return whole
        rows, cols = cut.tile(row, col)
        part = whole.reshape(*whole.shape[:dim], *cut.size, *whole.shape[dim + 1 :])
        part = part.narrow(dim, rows[0], rows[1] - rows[0])
        return part.narrow(dim + 1, cols[0], cols[1] - cols[0]).flatten(dim, dim + 1)
    for dim, (start, stop) in zip(cut.dims, cut.tile(row, col), strict=True):
        if dim >= missing and whole.shape[dim - missing] > 1:
            part = part.narrow(dim - missing, start, stop - start)
    return part


@dataclass(frozen=True, slots=True)
class Over:
    """A map of which each rank holds a tile, and the dimensions that a reduction of it runs over."""

    tiles: Tiles
    cut: Cut
    dims: tuple[int, ...]

    def elements(self, x: Tensor) -> int:
        """Return how many elements of the whole map are reduced to one result."""
        rows, cols = self.cut.size
        whole = {self.cut.dims[0]: rows * cols} if self.cut.flat else {self.cut.dims[0]: rows, self.cut.dims[1]: cols}
        return math.prod(whole.get(dim, x.shape[dim]) for dim in self.dims)

    def position(self, index: Tensor, dim: int) -> Tensor:
        """Turn an index along `dim` of the tile into an index in the whole map."""
        (top, _), (left, right) = self.cut.tile(self.tiles.row, self.tiles.col)
        if not self.cut.flat:
            return index + (top if dim == self.cut.dims[0] else left)
        rows, cols = index // (right - left) + top, index % (right - left) + left
        return rows * self.cut.bounds[1][-1] + cols

    def total(self, local: Tensor) -> Tensor:
        """Return the sum over the ranks of a local result that was reduced and has kept its dimensions."""
        return sum_over_ranks(self._placed(local, 0), self.tiles.group)

    def gathered(self, local: Tensor, neutral: float) -> Tensor:
        """Return the local results of all ranks, (ranks, ...), with `neutral` for the rows or columns of others."""
        y: Tensor = _Gathered.apply(self._placed(local, neutral), self.tiles.group)  # type: ignore[no-untyped-call]
        return y

    def tied(self, value: Tensor, count: Tensor, *, largest: bool) -> Tensor:
        """Return the extreme of all ranks; the pixels that have it, `count` on this rank, share its gradient."""
        op, neutral = _extreme_of(value.dtype, largest)
        placed = self._placed(value, neutral), self._placed(count, 0)
        y: Tensor = _Tied.apply(*placed, self.tiles.group, op)  # type: ignore[no-untyped-call]
        return y

    def first(self, value: Tensor, position: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
        """Return the extreme of all ranks and its lowest position, whose pixel gets the gradient."""
        op, neutral = _extreme_of(value.dtype, largest)
        placed = self._placed(value, neutral), self._placed(position, torch.iinfo(position.dtype).max)
        y: tuple[Tensor, Tensor] = _First.apply(*placed, self.tiles.group, op)  # type: ignore[no-untyped-call]
        return y

    def own(self, whole: Tensor) -> Tensor:
        """Return this rank's part of a whole result that has kept its dimensions."""
        return own_part(whole, self.cut, self.tiles.row, self.tiles.col, whole.ndim)

    def _placed(self, local: Tensor, neutral: float) -> Tensor:
        """Put a local result in its place among the rows or columns of the whole map, where the reduction left them."""
        if set(self.cut.dims) <= set(self.dims):
            return local
        pads, tile = [0] * (2 * local.ndim), self.cut.tile(self.tiles.row, self.tiles.col)
        for dim, bounds, (start, stop) in zip(self.cut.dims, self.cut.bounds, tile, strict=True):
            if dim not in self.dims:
                at = 2 * (local.ndim - 1 - dim)
                pads[at : at + 2] = start, bounds[-1] - stop
        return torch.constant_pad_nd(local, pads, neutral)


def _extreme_of(dtype: torch.dtype, largest: bool) -> tuple[Any, float | int]:
    """Return the operation that finds an extreme over ranks, and the value of a rank that has no pixel."""
    if largest:
        return dist.ReduceOp.MAX, lowest(dtype)
    return dist.ReduceOp.MIN, math.inf if dtype.is_floating_point else torch.iinfo(dtype).max
