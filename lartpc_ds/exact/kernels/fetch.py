"""Any pixels of a map go to any rank, by their indices on each axis, and their gradients come back.

A halo is one rectangle around a tile. Padding by reflection reads the image's own edge, which may lie on another rank;
circular padding reads the opposite edge; resampling reads a few pixels for each output; a slice with a step skips some.
All of them are one thing: per axis, each output reads a few input pixels by their indices, with weights. A rank fetches
the pixels that its outputs read, once each, as a smaller map, and indexes that. Where an index is read twice, its
gradients are added; the gradient of a fetched pixel is sent to the pixel's owner. Rejected: a kernel for each of these
functions.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Piece, Range, Rect, intersection
from lartpc_ds.exact.kernels.halo import empty_map, memory_format_of, part_of
from lartpc_ds.layout import Bounds

__all__ = ["AxisTaps", "Taps", "fetched"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Taps:
    """The reads of one axis: `index[t][o]` is the input pixel of tap t of output o, and `weights` has its factor."""

    index: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...] | None = None
    """If this is None, there is one tap, and its factor is one."""


@dataclass(frozen=True, slots=True)
class AxisTaps:
    """One axis of a map that is cut at `bounds`; its outputs are cut at `outputs` and read the `taps`."""

    bounds: Bounds
    outputs: Bounds
    taps: Taps

    def own(self, position: int) -> Range:
        """Return the input pixels that `position` owns."""
        return self.bounds[position], self.bounds[position + 1]

    def runs(self, position: int) -> tuple[Range, ...]:
        """Return the input pixels that `position` reads; gaps of less than a quarter of the map are filled."""
        return _runs(self, position)


@lru_cache(maxsize=4096)
def _runs(axis: AxisTaps, position: int) -> tuple[Range, ...]:
    outputs = slice(axis.outputs[position], axis.outputs[position + 1])
    pixels = sorted({pixel for tap in axis.taps.index for pixel in tap[outputs]})
    runs = [(pixels[0], pixels[0] + 1)]
    for pixel in pixels[1:]:
        if 4 * (pixel - runs[-1][1]) < axis.bounds[-1]:
            runs[-1] = (runs[-1][0], pixel + 1)
        else:
            runs.append((pixel, pixel + 1))
    return tuple(runs)


class _View(NamedTuple):
    """One rank's exchange: it receives and keeps pixels of the fetched map, and sends pixels of the whole map."""

    own: Rect
    size: tuple[int, int]
    kept: tuple[tuple[Rect, Rect], ...]
    """For each rectangle that stays on this rank: (where it is in the whole map, where in the fetched one)."""
    incoming: tuple[Piece, ...]
    outgoing: tuple[Piece, ...]


@lru_cache(maxsize=4096)
def _view(axes: tuple[AxisTaps, AxisTaps], row: int, col: int) -> _View:
    rows, cols = axes
    kept, incoming, outgoing = [], [], []
    grid = itertools.product(range(len(rows.bounds) - 1), range(len(cols.bounds) - 1))
    for peer, (r, c) in enumerate(grid):
        wanted = _parts(rows.runs(row), rows.own(r)), _parts(cols.runs(col), cols.own(c))
        for (over, to_row), (across, to_col) in itertools.product(*wanted):
            fetched = Rect((to_row, to_row + over[1] - over[0]), (to_col, to_col + across[1] - across[0]))
            if (r, c) == (row, col):
                kept.append((Rect(over, across), fetched))
            else:
                incoming.append(Piece(peer, fetched))
        if (r, c) != (row, col):
            given = _parts(rows.runs(r), rows.own(row)), _parts(cols.runs(c), cols.own(col))
            outgoing += [Piece(peer, Rect(over, across)) for (over, _), (across, _) in itertools.product(*given)]
    size = _length(rows.runs(row)), _length(cols.runs(col))
    return _View(Rect(rows.own(row), cols.own(col)), size, tuple(kept), tuple(incoming), tuple(outgoing))


def _length(runs: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in runs)


def _parts(runs: Sequence[Range], own: Range) -> list[tuple[Range, int]]:
    """Return the own pixels that are read: (pixels of the whole map, where they begin among all that are read)."""
    parts, before = [], 0
    for run in runs:
        both = intersection(run, own)
        if both:
            parts.append((both, before + both[0] - run[0]))
        before += run[1] - run[0]
    return parts


class _Fetched(Messenger):
    """(N, C, own) -> (N, C, read); gradients: (N, C, read) -> (N, C, own), those of others added by the owner."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, view: _View) -> Tensor:
        ctx.tiles, ctx.view, ctx.memory_format = tiles, view, memory_format_of(x)
        pieces = tiles.send_pieces([(p.peer, part_of(x, p.rect, view.own)) for p in view.outgoing], view.incoming, x)
        y = empty_map(x, view.size, ctx.memory_format)
        for source, target in view.kept:
            part_of(y, target).copy_(part_of(x, source, view.own))
        for rect, piece in pieces():
            part_of(y, rect).copy_(piece)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), view = gradients, ctx.view
        travelling = [(p.peer, part_of(gradient, p.rect)) for p in view.incoming]
        pieces = ctx.tiles.send_pieces(travelling, view.outgoing, gradient)
        home = empty_map(gradient, view.own.shape, ctx.memory_format).zero_()
        for source, target in view.kept:
            part_of(home, source, view.own).copy_(part_of(gradient, target))
        for rect, piece in pieces():
            part_of(home, rect, view.own).add_(piece)
        return home, None, None


def fetched(tiles: Tiles, x: Tensor, axes: tuple[AxisTaps, AxisTaps]) -> Tensor:
    """(N, C, own) -> (N, C, outputs): what this rank's outputs make of the pixels that they read."""
    y: Tensor = _Fetched.apply(x, tiles, _view(axes, tiles.row, tiles.col))  # type: ignore[no-untyped-call]
    for dim, axis, position in zip((2, 3), axes, (tiles.row, tiles.col), strict=True):
        y = _read(y, dim, axis, position)
    return y.to(x.dtype)


def _read(x: Tensor, dim: int, axis: AxisTaps, position: int) -> Tensor:
    """Return what the outputs of `position` make of the pixels that they read."""
    places, factors = _local(axis, position)
    parts = [x.index_select(dim, tap) for tap in torch.tensor(places, device=x.device)]
    if factors is None:
        return parts[0]
    weights = torch.tensor(factors, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    weights = weights[:, :, None] if dim == 2 else weights
    y: Tensor = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        y = y + part * weight
    return y


@lru_cache(maxsize=4096)
def _local(axis: AxisTaps, position: int) -> tuple[Array, Array | None]:
    """Return the place of what each output reads, among all that `position` reads, and its factors: (taps, outputs).

    They are arrays and not tensors, which a trace without data would make without data and leave in the cache.
    """
    outputs = slice(axis.outputs[position], axis.outputs[position + 1])
    read = np.concatenate([np.arange(*run) for run in axis.runs(position)])
    places = np.searchsorted(read, np.array([tap[outputs] for tap in axis.taps.index]))
    weights = axis.taps.weights
    return places, None if weights is None else np.array([tap[outputs] for tap in weights])
