"""Reductions over the whole image, each with its true adjoint.

Every rank computes the same loss from the same reduced values, so the adjoint of a sum over ranks is a sum over ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.parallel.order import Messenger
from lartpc_ds.parallel.tiles import Group, Tiles
from lartpc_ds.windows import Rect

__all__ = ["global_max", "global_sum", "sum_over_ranks"]


class _Sum(Messenger):
    """Any shape, summed over the ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.group.all_reduce(gradients[0].clone(memory_format=torch.contiguous_format)), None


def sum_over_ranks(x: Tensor, group: Group) -> Tensor:
    """The sum over the group, on every rank."""
    y: Tensor = _Sum.apply(x, group)  # type: ignore[no-untyped-call]
    return y


def global_sum(x: Tensor, dims: tuple[int, ...], group: Group) -> Tensor:
    """Sum over `dims`, kept, of a map of which each rank holds a tile; float32 or better."""
    return sum_over_ranks(x.sum(dims, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)), group)


class _Max(Messenger):
    """(N, C, own) -> (N, C, 1, 1): the largest value of the whole map; its gradient goes to the first that has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, own: Rect, width: int) -> Tensor:
        value, index = x.flatten(2).max(2)
        rows, cols = index // x.shape[3] + own.rows[0], index % x.shape[3] + own.cols[0]
        position = rows * width + cols
        largest = tiles.group.all_reduce(value.clone(), dist.ReduceOp.MAX)
        nowhere = torch.iinfo(position.dtype).max
        first = tiles.group.all_reduce(torch.where(value == largest, position, nowhere), dist.ReduceOp.MIN)
        ctx.tiles, ctx.shape = tiles, x.shape
        ctx.save_for_backward(index, (value == largest) & (position == first))
        return largest[:, :, None, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        index, mine = ctx.saved_tensors
        total = ctx.tiles.group.all_reduce(gradients[0].flatten(1).reshape(mine.shape).clone())
        home = total.new_zeros(ctx.shape)
        home.flatten(2).scatter_(2, index[..., None], (total * mine)[..., None])
        return home, None, None, None


def global_max(x: Tensor, tiles: Tiles, own: Rect, width: int) -> Tensor:
    """(N, C, own) -> (N, C, 1, 1); `width` is the whole map's, to order equal values as one device does."""
    y: Tensor = _Max.apply(x.contiguous(), tiles, own, width)  # type: ignore[no-untyped-call]
    return y
