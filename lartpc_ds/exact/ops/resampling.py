"""Functions that read pixels by index: resampling, mirrored and rolled maps, and slices of rows or columns.

Torch itself says what every output reads. It is asked for a ramp, whose values are the indices, and where an output is
a weighted sum, for images that are one in every so-many-th pixel. `kernels.fetch` then moves the pixels between ranks.
Rejected: formulas of our own, which would have to repeat torch's rounding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Cut, Function
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Transposed
from lartpc_ds.exact.kernels.fetch import AxisTaps, Taps, fetched
from lartpc_ds.exact.ops.operator import (
    Numbers,
    Operator,
    PatchCallSite,
    Result,
    TileCallSite,
    filled,
    map_cut,
    map_patches,
)

__all__ = ["OPERATORS", "selected", "sliced"]

_REACH = {"bilinear": 1, "bicubic": 2}
"""The number of pixels on either side of its own place that an output reads."""


@dataclass(frozen=True, slots=True)
class Select:
    """This rank's outputs of a function that reads rows and columns by index."""

    axes: tuple[AxisTaps, AxisTaps]

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the outputs (N, C, rows, columns) of this rank's tile."""
        return fetched(tiles, input, self.axes)


@dataclass(frozen=True, slots=True)
class Sliced:
    """This rank's outputs of indexing by slices of rows and columns, which are the dimensions `dims` of four."""

    axes: tuple[AxisTaps, AxisTaps]
    dims: tuple[int, int]

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, index: Any) -> Tensor:
        """Take this rank's rows and columns first, and then the rest of the index."""
        order = [dim for dim in range(4) if dim not in self.dims] + list(self.dims)
        y = fetched(tiles, input.permute(order), self.axes).permute([order.index(dim) for dim in range(4)])
        parts = list(index) if isinstance(index, tuple) else [index]
        place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
        parts[place : place + 1] = [slice(None)] * (4 - len([part for part in parts if part is not Ellipsis]))
        rest = tuple(slice(None) if dim in self.dims else part for dim, part in enumerate(parts))
        return function(y, rest)  # type: ignore[no-any-return]


def selected(site: TileCallSite, cut: Cut, mapped: Sequence[Sequence[int]], taps: Sequence[Taps], y: Tensor) -> Result:
    """Return what runs in place of a function with these taps, whose result `y` is cut near the `mapped` bounds."""
    axes = _axes(site, cut, mapped, taps)
    return site.mark(y, Cut((2, 3), (axes[0].outputs, axes[1].outputs))), Select(axes)


def _axes(
    site: TileCallSite, cut: Cut, mapped: Sequence[Sequence[int]], taps: Sequence[Taps]
) -> tuple[AxisTaps, AxisTaps]:
    rows, cols = (
        AxisTaps(cut.bounds[axis], filled(site, mapped[axis], len(taps[axis].index[0]), axis), taps[axis])
        for axis in (0, 1)
    )
    return rows, cols


def flip(site: TileCallSite, function: Function, input: Tensor, *dims: Any) -> Result:
    """Plan mirrored rows or columns, which may lie on another rank."""
    cut = site.cut_of(input)
    assert cut is not None
    chosen = {dim % input.ndim for dim in (dims[0] if isinstance(dims[0], tuple | list) else dims)}
    y = function(input, *dims)
    if not chosen & set(cut.dims):
        return site.mark(y, cut), None
    pixels = [range(size) for size in map_cut(site, input).size]
    taps = [Taps((tuple(reversed(axis)) if 2 + at in chosen else tuple(axis),)) for at, axis in enumerate(pixels)]
    if chosen - {2, 3}:
        raise site.refuse("mirrors rows or columns together with others; mirror these in a call of their own")
    return selected(site, cut, cut.bounds, taps, y)


def roll(site: TileCallSite, function: Function, input: Tensor, shifts: Any, dims: Any = None) -> Result:
    """Plan rolled rows or columns, which come from the opposite edge and so from another rank."""
    cut = site.cut_of(input)
    if cut is None or dims is None:
        raise site.refuse("moves pixels from row to row; name its dimensions")
    steps, places = ((given,) if isinstance(given, int) else tuple(given) for given in (shifts, dims))
    moved = {dim % input.ndim: step for dim, step in zip(places, steps, strict=True)}
    y = function(input, shifts, dims)
    if not set(moved) & set(cut.dims):
        return site.mark(y, cut), None
    if set(moved) - {2, 3}:
        raise site.refuse("moves rows or columns together with others; move these in a call of their own")
    sizes = map_cut(site, input).size
    taps = [Taps((tuple((pixel - moved.get(2 + at, 0)) % n for pixel in range(n)),)) for at, n in enumerate(sizes)]
    return selected(site, cut, cut.bounds, taps, y)


def sliced(site: TileCallSite, input: Tensor, cut: Cut, slices: Mapping[int, slice]) -> tuple[Cut, Sliced]:
    """Plan some rows or columns, by the slice of each dimension that is cut.

    Return the cut of the result and what runs in the function's place.
    """
    if input.ndim != 4 or cut.flat:
        raise site.refuse(
            "takes a part of the rows or columns of a map that is cut into tiles and has not four dimensions"
        )
    taps, mapped = [], []
    for dim, bounds in zip(cut.dims, cut.bounds, strict=True):
        pixels = range(bounds[-1])[slices.get(dim, slice(None))]
        taps.append(Taps((tuple(pixels),)))
        mapped.append([len([pixel for pixel in pixels if pixel < bound]) for bound in bounds])
    axes = _axes(site, cut, mapped, taps)
    return Cut(cut.dims, (axes[0].outputs, axes[1].outputs)), Sliced(axes, cut.dims)


def interpolate(
    site: TileCallSite,
    function: Function,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Result:
    """Plan nearest, nearest-exact, bilinear and bicubic, to larger or smaller maps, with antialias or without."""
    cut = map_cut(site, input)
    if mode not in ("nearest", "nearest-exact", *_REACH):
        raise site.refuse(f"mode {mode!r} is not covered on tiles; take nearest, bilinear or bicubic")
    y = function(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    taps, moved = [], []
    for axis in (0, 1):
        pixels, outputs = input.shape[2 + axis], y.shape[2 + axis]
        ask = _Axis(axis, outputs, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        taps.append(ask.taps(pixels))
        moved.append([math.ceil(bound * outputs / pixels) for bound in cut.bounds[axis]])
    return selected(site, cut, moved, taps, y)


def interpolate_on_patches(
    site: PatchCallSite,
    function: Function,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *args: Any,
    **kwargs: Any,
) -> Result:
    """Repeat every pixel a whole number of times; the patches of the result are those of the map, only larger."""
    patches = map_patches(site, input)
    given = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
    factors = [int(factor) for factor in given if factor is not None and factor >= 1 and factor == int(factor)]
    if size is not None or len(factors) < 2 or mode not in ("nearest", "nearest-exact"):
        raise site.refuse(
            f"with size {size}, scale_factor {scale_factor} and mode {mode!r} is covered for scale factors that are "
            f"whole numbers and mode 'nearest' only; {site.words.way_out}"
        )
    rows, cols = (Transposed(factor, factor) for factor in factors)
    target = patches.through(rows, cols, (patches.size[0] * factors[0], patches.size[1] * factors[1]))
    assert np.array_equal(target.index, patches.index)
    return site.mark_patches(function(input, size, scale_factor, mode, *args, **kwargs), target), None


class _Axis:
    """One axis of a call of F.interpolate."""

    def __init__(
        self,
        axis: int,
        outputs: int,
        size: Any,
        scale_factor: Any,
        mode: str,
        align_corners: Any,
        recompute: Any,
        antialias: bool,
    ) -> None:
        self._axis, self._outputs, self._mode, self._antialias = axis, outputs, mode, antialias
        self._size = None if size is None else ((outputs, 2) if axis == 0 else (2, outputs))
        self._factor: tuple[float, float] | None = None
        if scale_factor is not None:
            factors = (scale_factor, scale_factor) if isinstance(scale_factor, int | float) else tuple(scale_factor)
            self._factor = (float(factors[0]), 1.0) if axis == 0 else (1.0, float(factors[1]))
        self._how = align_corners, recompute

    def taps(self, pixels: int) -> Taps:
        """Return what every output reads of this many pixels."""
        if self._mode not in _REACH:
            ramp = torch.arange(pixels, dtype=torch.float32, device="cpu")[None]
            return Taps((tuple(int(pixel) for pixel in self._by_torch(ramp, self._mode, False)[0]),))
        reach = _REACH[self._mode] * (max(pixels / self._outputs, 1) if self._antialias else 1)
        steps = torch.arange(-math.ceil(reach) - 2, math.ceil(reach) + 3, device="cpu")
        places = self._by_torch(torch.arange(pixels, dtype=torch.float64, device="cpu")[None], "bilinear", False)[0]
        # (outputs, candidates); the candidates of an output have different residues modulo their number
        read = places.floor().long()[:, None] + steps
        combs = (
            torch.arange(pixels, device="cpu") % len(steps) == torch.arange(len(steps), device="cpu")[:, None]
        ).double()
        weights = self._by_torch(combs, self._mode, self._antialias).T.gather(1, read % len(steps))
        weights = torch.where((read >= 0) & (read < pixels), weights, 0.0)
        first = (weights != 0).long().argmax(1)
        span = int((torch.where(weights != 0, torch.arange(len(steps), device="cpu"), 0).amax(1) - first).amax()) + 1
        columns = (first[:, None] + torch.arange(span, device="cpu")).clamp(max=len(steps) - 1)
        beyond = first[:, None] + torch.arange(span, device="cpu") >= len(steps)
        chosen = torch.where(beyond, 0.0, weights.gather(1, columns))
        index = torch.where(chosen != 0, read.gather(1, columns), read.gather(1, first[:, None]))
        if span == 1 and bool((chosen == 1).all()):
            return Taps((tuple(index[:, 0].tolist()),))
        return Taps(tuple(map(tuple, index.T.tolist())), tuple(map(tuple, chosen.T.tolist())))

    def _by_torch(self, lines: Tensor, mode: str, antialias: bool) -> Tensor:
        """(lines, pixels) -> (lines, outputs), by torch."""
        image = lines[None, ..., None] if self._axis == 0 else lines[None, :, None]
        image = image.repeat_interleave(2, 3 - self._axis)  # with antialias, torch makes nonsense of a single line
        align_corners = self._how[0] if mode in _REACH else None
        y = F.interpolate(image, self._size, self._factor, mode, align_corners, self._how[1], antialias)
        read = y[0].select(2 - self._axis, 0).double()
        assert read.shape[1] == self._outputs, (read.shape, self._outputs)
        return read


OPERATORS = {
    "interpolate": Operator(on_tiles=interpolate, on_patches=interpolate_on_patches, numbers=Numbers.PLANNED),
    "flip": Operator(on_tiles=flip),
    "roll": Operator(on_tiles=roll),
}
