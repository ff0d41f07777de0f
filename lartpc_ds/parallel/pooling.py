"""Max pooling of a tile without a padded copy of it.

A pool's windows that lie in the tile need no neighbour, so torch pools the tile as it is. The few outputs at its edges
whose windows reach into the halo are pooled again from small rectangles of tile and halo pixels, in the same order of
pixels as on one device: of equal values, of which a nearly empty event has many, the same one gets the gradient.
Rejected: pooling a padded copy, which would stand beside the largest map of the network until the backward pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lartpc_ds.parallel.convolution import Geometry, in_place
from lartpc_ds.parallel.halo import add_home, cut, fetch, padded, send_home
from lartpc_ds.parallel.tiles import Tiles
from lartpc_ds.windows import Here, Range, Rect, Window, intersection

__all__ = ["max_pool"]

Pair = tuple[int, int]


class _Edge(NamedTuple):
    """Outputs (of this tile) whose windows reach into the halo, and the pixels (of the map) that they need."""

    outputs: Rect
    need: Rect


class _Pool(NamedTuple):
    """What both passes need to know; `kernel` and the like as torch takes them."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair
    skips: Pair
    edges: tuple[_Edge, ...]


def max_pool(tiles: Tiles, here: Here, geometry: Geometry, outputs: Pair, x: Tensor) -> Tensor:
    """(N, C, own) -> (N, C, outputs), this rank's part of the pool of the whole map."""
    kernel = geometry.rows.kernel, geometry.cols.kernel
    rows = in_place(geometry.rows, here.own.rows, here.need.rows, outputs[0])
    cols = in_place(geometry.cols, here.own.cols, here.need.cols, outputs[1])
    spread = geometry.dilation != (1, 1)  # a window may then miss the tile, and torch's backward writes astray
    if spread or rows is None or cols is None or rows.padding > kernel[0] // 2 or cols.padding > kernel[1] // 2:
        x = padded(tiles, x, here, -torch.inf)
        return F.max_pool2d(x, kernel, geometry.stride, 0, geometry.dilation)
    pool = _Pool(
        kernel,
        geometry.stride,
        geometry.dilation,
        (rows.padding, cols.padding),
        (rows.skip, cols.skip),
        tuple(_edges(geometry, here, outputs)),
    )
    y: Tensor = _MaxPool.apply(x, tiles, here, pool)  # type: ignore[no-untyped-call]
    return y


def _split(window: Window, own: Range, need: Range, size: int, outputs: int) -> tuple[int, int]:
    """Outputs [0, first) reach back into the halo, [last, outputs) forward; first <= last."""
    first, last = 0, outputs
    if own[0] > 0 and need[0] < own[0]:
        first = min(-(-(own[0] - need[0]) // window.stride), outputs)
    if own[1] < size and need[1] > own[1]:
        last = max(-(-(own[1] - need[0] - window.reach + 1) // window.stride), 0)
    return first, max(first, last)


def _edges(geometry: Geometry, here: Here, outputs: Pair) -> list[_Edge]:
    """Disjoint: above and below over the whole width, left and right between them."""
    top, bottom = _split(geometry.rows, here.own.rows, here.need.rows, here.size[0], outputs[0])
    left, right = _split(geometry.cols, here.own.cols, here.need.cols, here.size[1], outputs[1])
    between, width = (top, bottom), (0, outputs[1])
    rects = [
        Rect((0, top), width),
        Rect((bottom, outputs[0]), width),
        Rect(between, (0, left)),
        Rect(between, (right, outputs[1])),
    ]
    return [
        _Edge(
            rect, Rect(_need(geometry.rows, here.need.rows, rect.rows), _need(geometry.cols, here.need.cols, rect.cols))
        )
        for rect in rects
        if rect.shape[0] > 0 and rect.shape[1] > 0
    ]


def _need(window: Window, need: Range, outputs: Range) -> Range:
    start = need[0] + outputs[0] * window.stride
    return start, need[0] + (outputs[1] - 1) * window.stride + window.reach


class _MaxPool(torch.autograd.Function):
    """(N, C, own) -> (N, C, outputs); gradient: (N, C, outputs) -> (N, C, own), the halo's added by its owners."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, here: Here, pool: _Pool) -> Tensor:
        ctx.tiles, ctx.here, ctx.pool = tiles, here, pool
        pieces = fetch(tiles, x, here)
        if not tiles.overlap:
            pieces()
        y, index = _forward(_skipped(x, pool), pool, pool.padding)
        saved = [x, index]
        halos = pieces()
        for edge in pool.edges:
            pixels = _assembled(x, halos, here, edge.need)
            pooled, edge_index = _forward(pixels, pool, (0, 0))
            _at(y, edge.outputs).copy_(pooled)
            saved += [pixels, edge_index]
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), here, pool = gradients, ctx.here, ctx.pool
        x, index, *saved = ctx.saved_tensors
        interior = gradient.clone() if pool.edges else gradient
        edge_gradients = []
        for edge, pixels, edge_index in zip(pool.edges, saved[::2], saved[1::2], strict=True):
            own = _backward(_at(gradient, edge.outputs), pixels, edge_index, pool, (0, 0))
            edge_gradients.append((edge.need, own))
            _at(interior, edge.outputs).zero_()
        travelling = [_sum_at(piece.rect, edge_gradients, x) for piece in here.incoming]
        pieces = send_home(ctx.tiles, travelling, here, x)
        g_x = _backward(interior, _skipped(x, pool), index, pool, pool.padding)
        if any(pool.skips):
            g_x = F.pad(g_x, (pool.skips[1], 0, pool.skips[0], 0))
        for need, g in edge_gradients:
            kept = _both(need, here.own)
            if kept is not None:
                cut(g_x, kept, here.own).add_(cut(g, kept, need))
        return add_home(g_x, pieces(), here), None, None, None


def _forward(x: Tensor, pool: _Pool, padding: Pair) -> tuple[Tensor, Tensor]:
    y, index = torch.ops.aten.max_pool2d_with_indices(x, pool.kernel, pool.stride, padding, pool.dilation, False)
    return y, index


def _backward(gradient: Tensor, x: Tensor, index: Tensor, pool: _Pool, padding: Pair) -> Tensor:
    result: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, x, pool.kernel, pool.stride, padding, pool.dilation, False, index
    )
    return result


def _skipped(x: Tensor, pool: _Pool) -> Tensor:
    return x[:, :, pool.skips[0] :, pool.skips[1] :]


def _at(y: Tensor, outputs: Rect) -> Tensor:
    (top, bottom), (left, right) = outputs
    return y[:, :, top:bottom, left:right]


def _both(one: Rect, other: Rect) -> Rect | None:
    rows, cols = intersection(one.rows, other.rows), intersection(one.cols, other.cols)
    return Rect(rows, cols) if rows and cols else None


def _assembled(x: Tensor, halos: Sequence[tuple[Rect, Tensor]], here: Here, need: Rect) -> Tensor:
    """The pixels of `need` from tile and halo; minus infinity outside the image."""
    pixels = x.new_full((*x.shape[:2], *need.shape), -torch.inf)
    for origin, source in [(here.own, x), *halos]:
        kept = _both(need, origin)
        if kept is not None:
            cut(pixels, kept, need).copy_(cut(source, kept, origin))
    return pixels


def _sum_at(rect: Rect, parts: Sequence[tuple[Rect, Tensor]], like: Tensor) -> Tensor:
    """The sum, over the parts that meet it, of what they hold for `rect`."""
    total = like.new_zeros((*like.shape[:2], *rect.shape))
    for need, part in parts:
        kept = _both(rect, need)
        if kept is not None:
            cut(total, kept, rect).add_(cut(part, kept, need))
    return total
