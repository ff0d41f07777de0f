"""A tile is max-pooled without a padded copy of it.

A pool's windows that lie in the tile need no neighbour, so torch pools the tile as it is. The few outputs at its edges
whose windows reach into the halo are pooled again from small rectangles of tile and halo pixels, in the same order of
pixels as on one device: of equal values, of which a nearly empty event has many, the same one gets the gradient.
Rejected: pooling a padded copy, which would stand beside the largest map of the network until the backward pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Range, Rect, TileView, Window
from lartpc_ds.exact.kernels.convolution import Geometry, in_place, outputs_without_halo
from lartpc_ds.exact.kernels.halo import add_home, fetch, padded, part_of, send_home
from lartpc_ds.exact.kernels.pool_places import Pool, choose, give_back

__all__ = ["max_pool"]

Pair = tuple[int, int]


class _Edge(NamedTuple):
    """Outputs (of this tile) whose windows reach into the halo, and the pixels (of the map) that they need."""

    outputs: Rect
    need: Rect


class _Tile(NamedTuple):
    """What both passes of a pool need to know about the tile."""

    pool: Pool
    """The pool of the tile itself."""
    skips: Pair
    """The number of the tile's first rows and columns that its outputs do not need."""
    outputs: Pair
    edges: tuple[_Edge, ...]

    @property
    def at_edges(self) -> Pool:
        """The pool of the small rectangles, which bring their surroundings and need no padding."""
        return replace(self.pool, padding=(0, 0))


def max_pool(tiles: Tiles, here: TileView, geometry: Geometry, outputs: Pair, x: Tensor) -> Tensor:
    """(N, C, own) -> (N, C, outputs), this rank's part of the pool of the whole map."""
    kernel = geometry.rows.kernel, geometry.cols.kernel
    rows = in_place(geometry.rows, here.own.rows, here.need.rows, outputs[0])
    cols = in_place(geometry.cols, here.own.cols, here.need.cols, outputs[1])
    spread = geometry.dilation != (1, 1)  # a window may then miss the tile, and torch's backward writes astray
    large = kernel[0] * kernel[1] > 256  # a place in such a window does not fit a byte
    if (
        spread
        or large
        or rows is None
        or cols is None
        or rows.padding > kernel[0] // 2
        or cols.padding > kernel[1] // 2
    ):
        x = padded(tiles, x, here, -torch.inf)
        return F.max_pool2d(x, kernel, geometry.stride, 0, geometry.dilation)
    pool = Pool(kernel, geometry.stride, (rows.padding, cols.padding))
    tile = _Tile(pool, (rows.skip, cols.skip), outputs, tuple(_edges(geometry, here, outputs)))
    y: Tensor = _MaxPool.apply(x, tiles, here, tile)  # type: ignore[no-untyped-call]
    return y


def _edges(geometry: Geometry, here: TileView, outputs: Pair) -> list[_Edge]:
    """Return disjoint edges: above and below over the whole width, left and right between them."""
    top, bottom = outputs_without_halo(geometry.rows, here.own.rows, here.need.rows, here.size[0], outputs[0])
    left, right = outputs_without_halo(geometry.cols, here.own.cols, here.need.cols, here.size[1], outputs[1])
    bottom, right = max(top, bottom), max(left, right)
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


class _MaxPool(Messenger):
    """(N, C, own) -> (N, C, outputs); gradient: (N, C, outputs) -> (N, C, own), the halo's added by its owners."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, here: TileView, tile: _Tile) -> Tensor:
        ctx.tiles, ctx.here, ctx.tile = tiles, here, tile
        pieces = fetch(tiles, x, here)
        if not tiles.overlap:
            pieces()
        y, places = choose(tile.pool, x[:, :, tile.skips[0] :, tile.skips[1] :], tile.outputs)
        saved = [places]
        halos = pieces()
        for edge in tile.edges:
            pixels = _assembled(x, halos, here, edge.need)
            pooled, edge_places = choose(tile.at_edges, pixels, edge.outputs.shape)
            part_of(y, edge.outputs).copy_(pooled)
            saved.append(edge_places)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), here, tile = gradients, ctx.here, ctx.tile
        places, *edge_places = ctx.saved_tensors
        interior = gradient.clone() if tile.edges else gradient
        edge_gradients = []
        for edge, chosen in zip(tile.edges, edge_places, strict=True):
            own = give_back(tile.at_edges, part_of(gradient, edge.outputs), chosen, edge.need.shape)
            edge_gradients.append((edge.need, own))
            part_of(interior, edge.outputs).zero_()
        travelling = [_sum_at(piece.rect, edge_gradients, gradient) for piece in here.incoming]
        pieces = send_home(ctx.tiles, travelling, here, gradient)
        height, width = here.own.shape
        g_x = give_back(tile.pool, interior, places, (height - tile.skips[0], width - tile.skips[1]))
        if any(tile.skips):
            g_x = F.pad(g_x, (tile.skips[1], 0, tile.skips[0], 0))
        for need, g in edge_gradients:
            kept = need.common(here.own)
            if kept is not None:
                part_of(g_x, kept, here.own).add_(part_of(g, kept, need))
        return add_home(g_x, pieces(), here), None, None, None


def _assembled(x: Tensor, halos: Sequence[tuple[Rect, Tensor]], here: TileView, need: Rect) -> Tensor:
    """Return the pixels of `need` from tile and halo; they are minus infinity outside the image."""
    pixels = x.new_full((*x.shape[:2], *need.shape), -torch.inf)
    for origin, source in [(here.own, x), *halos]:
        kept = need.common(origin)
        if kept is not None:
            part_of(pixels, kept, need).copy_(part_of(source, kept, origin))
    return pixels


def _sum_at(rect: Rect, parts: Sequence[tuple[Rect, Tensor]], like: Tensor) -> Tensor:
    """Return the sum, over the parts that meet `rect`, of what they hold for it."""
    total = like.new_zeros((*like.shape[:2], *rect.shape))
    for need, part in parts:
        kept = rect.common(need)
        if kept is not None:
            part_of(total, kept, rect).add_(part_of(part, kept, need))
    return total
