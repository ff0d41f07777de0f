"""Adaptive pools reduce a map that is cut into tiles to one value or to several cells.

A cell may reach over several tiles, and neighbouring cells may share pixels. Each rank pools the part of every cell
that it has, and the parts are reduced over all ranks. The result is small and whole on every rank, whatever its size.
Rejected: results that are cut into tiles, because a pool to one pixel has none to share.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.cuts import Cut, Function
from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Range, Rect
from lartpc_ds.exact.kernels.collectives import Over, first_of_all, lowest, sum_over_ranks
from lartpc_ds.exact.kernels.halo import part_of
from lartpc_ds.exact.ops.norms import statistics_on_strips
from lartpc_ds.exact.ops.operator import Operator, PatchCallSite, Result, TileCallSite, map_cut, map_patches
from lartpc_ds.exact.ops.reductions import REDUCTIONS, over_map

__all__ = ["OPERATORS"]

Axes = tuple[tuple[Range, ...], tuple[Range, ...]]


def adaptive_avg_pool2d(site: TileCallSite, function: Function, input: Tensor, output_size: Any) -> Result:
    """Plan the mean over the image, or over each cell of it."""
    cut = map_cut(site, input)
    return function(input, output_size), Cells(cut, _cells(input, output_size), largest=False)


def adaptive_max_pool2d(
    site: TileCallSite, function: Function, input: Tensor, output_size: Any, return_indices: bool = False
) -> Result:
    """Plan the maximum over the image, or over each cell of it."""
    cut = map_cut(site, input)
    if return_indices:
        raise site.refuse("return_indices would give positions within a tile; leave it out")
    return function(input, output_size), Cells(cut, _cells(input, output_size), largest=True)


def _cells(x: Tensor, output_size: Any) -> Axes:
    """Return the pixels of every cell, by rows and by columns, as torch cuts them; None keeps a size."""
    asked = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size, output_size)
    axes = []
    for size, cells in zip(x.shape[2:], asked, strict=True):
        count = size if cells is None else int(cells)
        axes.append(tuple((cell * size // count, -(-(cell + 1) * size // count)) for cell in range(count)))
    return axes[0], axes[1]


@dataclass(frozen=True, slots=True)
class Cells:
    """F.adaptive_avg_pool2d, or with `largest` F.adaptive_max_pool2d, of a map that is cut at `cut`."""

    cut: Cut
    cells: Axes
    largest: bool

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return all cells (N, C, rows, columns), which are the same on every rank."""
        x = input
        own = self.cut.tile(tiles.row, tiles.col)
        if self.largest:
            y: Tensor = _Largest.apply(x, tiles, own, self.cells, self.cut.bounds[1][-1])  # type: ignore[no-untyped-call]
            return y
        if all(len(cells) == 1 for cells in self.cells):
            mean = REDUCTIONS["mean"](x, Over(tiles, self.cut, self.cut.dims), dtype=x.dtype)
            assert isinstance(mean, Tensor)
            return mean
        return self._means(tiles, x, own)

    def _means(self, tiles: Tiles, x: Tensor, own: Rect) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        rows, cols = (_membership(cells, part, exact) for cells, part in zip(self.cells, own, strict=True))
        with _without_autocast(x):
            sums = rows @ (exact @ cols.T)
        heights, widths = (
            torch.tensor([stop - start for start, stop in cells], dtype=exact.dtype, device=x.device)
            for cells in self.cells
        )
        return (sum_over_ranks(sums, tiles.group) / (heights[:, None] * widths)).to(x.dtype)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _membership(cells: Sequence[Range], own: Range, like: Tensor) -> Tensor:
    """Return a matrix (cells, own pixels) with 1 where the cell has the pixel."""
    edges = torch.tensor(cells, device=like.device)
    pixels = torch.arange(*own, device=like.device)
    return ((pixels >= edges[:, :1]) & (pixels < edges[:, 1:])).to(like.dtype)


class _Largest(Messenger):
    """(N, C, own) -> (N, C, cells): the largest values; the gradient of each goes to the first pixel that has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, own: Rect, axes: Axes, width: int) -> Tensor:
        values, indices, positions = [], [], []
        for cell in (Rect(rows, cols) for rows in axes[0] for cols in axes[1]):
            part = cell.common(own)
            value = x.new_full(x.shape[:2], lowest(x.dtype))
            index = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
            if part is not None:
                (top, _), (left, right) = part
                value, index = part_of(x, part, own).flatten(2).max(2)
                row, col = index // (right - left) + top, index % (right - left) + left
                index = (row - own.rows[0]) * x.shape[3] + col - own.cols[0]
                positions.append(row * width + col)
            else:
                positions.append(torch.full_like(index, torch.iinfo(index.dtype).max))
            values.append(value)
            indices.append(index)
        # every process group can compare this type, and no value changes
        value = torch.stack(values, 2).to(torch.promote_types(x.dtype, torch.float32))
        largest, _, mine = first_of_all(value, torch.stack(positions, 2), tiles.group, dist.ReduceOp.MAX)
        ctx.tiles, ctx.shape = tiles, x.shape
        ctx.save_for_backward(torch.stack(indices, 2), mine)
        return largest.to(x.dtype).reshape(*x.shape[:2], len(axes[0]), len(axes[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        indices, mine = ctx.saved_tensors
        total = ctx.tiles.group.all_reduce(gradients[0].reshape(mine.shape).clone())
        home = total.new_zeros(ctx.shape)
        home.flatten(2).scatter_add_(2, indices, total * mine)
        return home, None, None, None, None


def adaptive_avg_pool2d_on_patches(site: PatchCallSite, function: Function, input: Tensor, output_size: Any) -> Result:
    """Run the mean over the image."""
    map_patches(site, input)
    if output_size not in (1, (1, 1), [1, 1]):
        raise site.refuse(f"to {output_size} is covered to one pixel only; {site.words.way_out}")
    return over_map(site, input, input.dtype, keepdim=True, mean=True), None


OPERATORS = {
    "adaptive_avg_pool2d": Operator(
        on_tiles=adaptive_avg_pool2d, on_strips=statistics_on_strips, on_patches=adaptive_avg_pool2d_on_patches
    ),
    "adaptive_max_pool2d": Operator(on_tiles=adaptive_max_pool2d, on_strips=statistics_on_strips),
}
