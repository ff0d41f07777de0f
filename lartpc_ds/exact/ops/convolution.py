"""Convolutions, transposed convolutions, and the windows of a map as channels (`unfold`).

Each argument tuple reads a call once for tiles, strips and patches, and gives the windows. On tiles the plan knows the
whole result; on strips the rows that lie at a true border are padded before torch's own function runs; a patch is read
with its surroundings. Rejected: padded copies of tiles, for which `kernels.convolution` gives the reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Cut, Function, Plans, Run, view_of
from lartpc_ds.exact.grid.remade import own_copy
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Range, Transposed
from lartpc_ds.exact.kernels.convolution import Geometry, convolve
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.kernels.patches import Options, convolved, repeat_edges
from lartpc_ds.exact.ops.operator import (
    Numbers,
    Operator,
    Pair,
    PatchCallSite,
    Result,
    StripCallSite,
    TileCallSite,
    map_cut,
    map_patches,
    map_rows,
    pair,
)
from lartpc_ds.exact.ops.windows import OutBounds, outputs_of, planned, read_patches, windowed_rows, windows_of

__all__ = ["OPERATORS", "Convolution", "Remake"]


_FEW_PIXELS = 4
"""A convolution of patches of this many pixels or fewer is a product of matrices, which then takes half the time."""


class _Conv2d(NamedTuple):
    """The arguments of F.conv2d."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        """The windows of the convolution.

        If the kernel is even and the padding is "same", torch puts the odd pixel after the map.
        """
        kernel, spread, padding = pair(self.weight.shape[2:]), pair(self.dilation), self.padding
        if padding == "same":
            padding = tuple(spread[axis] * (kernel[axis] - 1) // 2 for axis in (0, 1))
        return Geometry(*windows_of(kernel, self.stride, 0 if padding == "valid" else padding, self.dilation))

    @property
    def odd(self) -> Pair:
        """The rows and columns of padding after the map beyond those before it."""
        same, geometry = self.padding == "same", self.geometry
        return ((geometry.rows.reach - 1) % 2, (geometry.cols.reach - 1) % 2) if same else (0, 0)

    def autocast(self) -> "_Conv2d":
        """Do to the tensors what torch.autocast does, because it does not reach into autograd functions."""
        device = self.input.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return self
        dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(input=self.input.to(dtype), weight=self.weight.to(dtype), bias=bias)


@dataclass(frozen=True, slots=True)
class Convolution:
    """This rank's outputs of F.conv2d."""

    plans: Plans
    bounds: OutBounds
    geometry: Geometry

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs (N, K, rows, columns) of this rank's tile."""
        groups = (given := _Conv2d(*args, **kwargs)).input.shape[1] // given.weight.shape[1]
        x, weight, bias, *_ = given.autocast()
        outputs = outputs_of(self.bounds, tiles).shape
        return convolve(tiles, view_of(self.plans, tiles), self.geometry, outputs, x, weight, bias, groups)


@dataclass(frozen=True, slots=True)
class Remake:
    """F.conv2d, or `run` in its place, whose result is not kept: it is made again from its small input."""

    run: Run | None

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        given = _Conv2d(*args, **kwargs).autocast()

        def made(given: _Conv2d) -> Tensor:
            y: Tensor = function(*given) if self.run is None else self.run(tiles, function, *given)
            return y

        y = made(given)
        if not torch.is_grad_enabled():
            return y
        own = given._replace(weight=own_copy(given.weight), bias=own_copy(given.bias))
        return tiles.remade.note(y, torch.no_grad()(lambda: made(own)))


def conv2d_on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan any kernel, stride, padding, dilation and groups."""
    given = _Conv2d(*args, **kwargs)
    cut, y, geometry = map_cut(site, given.input), function(*given), given.geometry
    plans, bounds = planned(site, cut, (geometry.rows, geometry.cols), y)
    return y, Convolution(plans, bounds, geometry)


def conv2d_on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any kernel, stride, padding, dilation and groups."""
    given = _Conv2d(*args, **kwargs)
    rows, cols = given.geometry.rows, given.geometry.cols
    odd_row, odd_col = given.odd
    outputs = rows.outputs(map_rows(site, given.input).size + odd_row)
    x, out = windowed_rows(site, given.input, rows, outputs, 0.0, (0, odd_col))
    return site.mark_rows(function(*given._replace(input=x, padding=(0, cols.padding))), out), None


def conv2d_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any kernel, padding, dilation and groups, and a stride that divides the patches."""
    given = _Conv2d(*args, **kwargs)
    axes, patches = (given.geometry.rows, given.geometry.cols), map_patches(site, given.input)
    if all((axis.kernel, axis.stride, axis.padding) == (1, 1, 0) for axis in axes):
        if given.groups > 1:
            return site.mark_patches(function(*given), patches), None
        pixels = F.linear(given.input.permute(0, 2, 3, 1), given.weight.flatten(1), given.bias)  # faster than torch's
        return site.mark_patches(pixels.permute(0, 3, 1, 2), patches), None
    outputs = [axis.outputs(size + odd) for axis, size, odd in zip(axes, patches.size, given.odd, strict=True)]
    sides = [(axis.patch_after(side) or 0) for axis, side in zip(axes, patches.shape, strict=True)]
    by_tap = given.groups == 1 and sides[0] * sides[1] <= _FEW_PIXELS
    target, reading = read_patches(site, given.input, axes, (outputs[0], outputs[1]), by_tap=by_tap)
    stride = [1 if axis.kernel == 1 else axis.stride for axis in axes]
    options = Options((stride[0], stride[1]), pair(given.dilation), given.groups)
    x, weight, bias, *_ = given.autocast()
    return site.mark_patches(repeat_edges(convolved(x, weight, bias, reading, options), target), target), None


class _ConvTranspose2d(NamedTuple):
    """The arguments of F.conv_transpose2d."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1

    @property
    def axes(self) -> tuple[Transposed, Transposed]:
        """The windows of rows and columns."""
        kernel, steps, pads, spread = map(pair, (self.weight.shape[2:], self.stride, self.padding, self.dilation))
        rows, cols = (Transposed(kernel[axis], steps[axis], pads[axis], spread[axis]) for axis in (0, 1))
        return rows, cols


@dataclass(frozen=True, slots=True)
class TransposedConvolution:
    """This rank's outputs of F.conv_transpose2d: torch's own on the inputs that reach them, cut to them."""

    plans: Plans
    bounds: OutBounds
    stride: Pair
    padding: Pair
    dilation: Pair

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        given, here = _ConvTranspose2d(*args, **kwargs), view_of(self.plans, tiles)
        x = padded(tiles, given.input, here)
        y = F.conv_transpose2d(x, given.weight, None, self.stride, 0, 0, given.groups, self.dilation)
        starts = [here.need[axis][0] * self.stride[axis] - self.padding[axis] for axis in (0, 1)]
        y = _cropped(y, starts, outputs_of(self.bounds, tiles))
        return y if given.bias is None else y + given.bias.to(y.dtype)[:, None, None]


def _cropped(y: Tensor, starts: Sequence[int], wanted: Sequence[Range]) -> Tensor:
    """Return the `wanted` rows and columns of a map whose first ones have the numbers `starts`, zero beyond it."""
    pads: list[int] = []
    for axis, (start, stop) in enumerate(wanted):
        pads = [starts[axis] - start, stop - starts[axis] - y.shape[2 + axis], *pads]
    # y is padded before it is cropped, because where no input reaches the outputs, they lie beside y altogether
    for added in ([max(pad, 0) for pad in pads], [min(pad, 0) for pad in pads]):
        y = F.pad(y, added) if any(added) else y
    return y


def conv_transpose2d_on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan any kernel, stride, padding, output padding, dilation and groups."""
    given = _ConvTranspose2d(*args, **kwargs)
    cut, y = map_cut(site, given.input), function(*given)
    plans, bounds = planned(site, cut, given.axes, y)
    return y, TransposedConvolution(plans, bounds, pair(given.stride), pair(given.padding), pair(given.dilation))


def conv_transpose2d_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any kernel, stride, padding, output padding, dilation and groups."""
    given = _ConvTranspose2d(*args, **kwargs)
    axes, patches = given.axes, map_patches(site, given.input)
    outputs = [
        (size - 1) * axis.stride - 2 * axis.padding + axis.dilation * (axis.kernel - 1) + 1 + more
        for axis, size, more in zip(axes, patches.size, pair(given.output_padding), strict=True)
    ]
    target, reading = read_patches(site, given.input, axes, (outputs[0], outputs[1]))
    options = Options(pair(given.stride), pair(given.dilation), given.groups, transposed=True)
    x, weight, bias, *_ = _Conv2d(given.input, given.weight, given.bias).autocast()
    starts = [
        axis.need((0, side))[0] * axis.stride - axis.padding for axis, side in zip(axes, target.shape, strict=True)
    ]
    y = _cropped(convolved(x, weight, None, reading, options), starts, [(0, side) for side in target.shape])
    y = y if bias is None else y + bias[:, None, None]
    return site.mark_patches(repeat_edges(y, target), target), None


class _Unfold(NamedTuple):
    """The arguments of F.unfold."""

    input: Tensor
    kernel_size: Any
    dilation: Any = 1
    padding: Any = 0
    stride: Any = 1


@dataclass(frozen=True, slots=True)
class Unfold:
    """This rank's windows of F.unfold."""

    plans: Plans

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the windows (N, C * kernel, windows) of this rank's tile."""
        given = _Unfold(*args, **kwargs)
        return F.unfold(*given._replace(input=padded(tiles, given.input, view_of(self.plans, tiles)), padding=0))


def unfold(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan F.unfold: the pixels of a window become channels, and rows and columns of windows become one dimension."""
    if function is Tensor.unfold:
        raise site.refuse("has no proven form on tiles as a tensor's method; use torch.nn.functional.unfold")
    given = _Unfold(*args, **kwargs)
    cut, y = map_cut(site, given.input), function(*given)
    axes = windows_of(given.kernel_size, given.stride, given.padding, given.dilation)
    sizes = [axis.outputs(pixels) for axis, pixels in zip(axes, given.input.shape[2:], strict=True)]
    plans, bounds = planned(site, cut, axes, y.new_empty((1, 1, *sizes)))
    return site.mark(y, Cut((2, 2), bounds)), Unfold(plans)


OPERATORS = {
    "conv2d": Operator(
        on_tiles=conv2d_on_tiles,
        on_strips=conv2d_on_strips,
        on_patches=conv2d_on_patches,
        numbers=Numbers.PLANNED,
        fresh_gradient=True,
    ),
    "conv_transpose2d": Operator(
        on_tiles=conv_transpose2d_on_tiles, on_patches=conv_transpose2d_on_patches, numbers=Numbers.PLANNED
    ),
    "unfold": Operator(on_tiles=unfold, numbers=Numbers.PLANNED),
}
