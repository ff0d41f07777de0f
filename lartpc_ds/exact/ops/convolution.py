"""Convolutions, transposed convolutions, and the windows of a map as channels (`unfold`)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Cut, Function, Plans, Run, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Transposed
from lartpc_ds.exact.kernels.convolution import Geometry, convolve
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.ops.operator import (
    Numbers,
    Operator,
    Pair,
    Result,
    StripSite,
    TileSite,
    map_cut,
    map_rows,
    pair,
)
from lartpc_ds.exact.ops.windows import OutBounds, outputs_of, planned, windowed_rows, windows_of

__all__ = ["OPERATORS", "Convolution", "Remake"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """This rank's outputs of F.conv2d."""

    plans: Plans
    bounds: OutBounds
    geometry: Geometry

    def __call__(
        self,
        tiles: Tiles,
        function: Function,
        /,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        """The outputs (N, K, rows, columns) of this rank's tile."""
        groups = input.shape[1] // weight.shape[1]
        x, weight, bias = _autocast(input, weight, bias)
        outputs = outputs_of(self.bounds, tiles).shape
        return convolve(tiles, view_of(self.plans, tiles), self.geometry, outputs, x, weight, bias, groups)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do to a convolution's tensors what torch.autocast does; it does not reach into autograd functions."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@dataclass(frozen=True, slots=True)
class Remake:
    """F.conv2d, or `run` in its place, whose result is not kept: it is made again from its small input."""

    run: Run | None

    def __call__(
        self,
        tiles: Tiles,
        function: Function,
        /,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The outputs of this rank's tile."""
        x, weight, bias = _autocast(input, weight, bias)

        def made(weight: Tensor, bias: Tensor | None) -> Tensor:
            if self.run is None:
                y: Tensor = function(x, weight, bias, *args, **kwargs)
            else:
                y = self.run(tiles, function, x, weight, bias, *args, **kwargs)
            return y

        y = made(weight, bias)
        if not torch.is_grad_enabled():
            return y
        # with weights of its own: a sharding engine takes a parameter's away before a later layer asks for the map
        own_weight, own_bias = weight.detach().clone(), None if bias is None else bias.detach().clone()
        return tiles.remade.note(y, torch.no_grad()(lambda: made(own_weight, own_bias)))


def _geometry(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Geometry:
    """The windows of a call of F.conv2d; of an even kernel with padding "same", torch puts the odd pixel after."""
    kernel, spread = pair(weight.shape[2:]), pair(dilation)
    if padding == "same":
        padding = tuple(spread[axis] * (kernel[axis] - 1) // 2 for axis in (0, 1))
    return Geometry(*windows_of(kernel, stride, 0 if padding == "valid" else padding, dilation))


def conv2d_on_tiles(
    site: TileSite,
    function: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Result:
    """Any kernel, stride, padding, dilation and groups."""
    cut = map_cut(site, input)
    y = function(input, weight, bias, stride, padding, dilation, groups)
    geometry = _geometry(weight, stride, padding, dilation)
    plans, bounds = planned(site, cut, (geometry.rows, geometry.cols), y)
    return y, Convolution(plans, bounds, geometry)


def conv2d_on_strips(
    site: StripSite,
    function: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Result:
    """Any kernel, stride, padding, dilation and groups."""
    rows, cols = (geometry := _geometry(weight, stride, padding, dilation)).rows, geometry.cols
    odd_row, odd_col = ((rows.reach - 1) % 2, (cols.reach - 1) % 2) if padding == "same" else (0, 0)
    pixels = map_rows(site, input).size + 2 * rows.padding + odd_row
    outputs = (pixels - rows.reach) // rows.stride + 1
    x, out = windowed_rows(site, input, rows, outputs, 0.0, (0, odd_col))
    return site.mark_rows(function(x, weight, bias, stride, (0, cols.padding), dilation, groups), out), None


@dataclass(frozen=True, slots=True)
class TransposedConvolution:
    """This rank's outputs of F.conv_transpose2d: torch's own on the inputs that reach them, cut to them."""

    plans: Plans
    bounds: OutBounds
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def __call__(
        self,
        tiles: Tiles,
        function: Function,
        /,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        """The outputs of this rank's tile."""
        here = view_of(self.plans, tiles)
        x = padded(tiles, input, here)
        y = F.conv_transpose2d(x, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        pads: list[int] = []
        for axis, wanted in enumerate(outputs_of(self.bounds, tiles)):
            start = here.need[axis][0] * self.stride[axis] - self.padding[axis]
            pads = [start - wanted[0], wanted[1] - start - y.shape[2 + axis], *pads]
        # first more, then less: where no input reaches the outputs, they lie beside y altogether
        for some in ([max(pad, 0) for pad in pads], [min(pad, 0) for pad in pads]):
            y = F.pad(y, some) if any(some) else y
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def conv_transpose2d(
    site: TileSite,
    function: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Result:
    """Any kernel, stride, padding, output padding, dilation and groups."""
    cut = map_cut(site, input)
    y = function(input, weight, bias, stride, padding, output_padding, groups, dilation)
    kernel, steps, pads, spread = pair(weight.shape[2:]), pair(stride), pair(padding), pair(dilation)
    axes = [Transposed(kernel[axis], steps[axis], pads[axis], spread[axis]) for axis in (0, 1)]
    plans, bounds = planned(site, cut, axes, y)
    return y, TransposedConvolution(plans, bounds, steps, pads, spread, groups)


@dataclass(frozen=True, slots=True)
class Unfold:
    """This rank's windows of F.unfold."""

    plans: Plans
    kernel: Pair
    dilation: Pair
    stride: Pair

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """The windows (N, C * kernel, windows) of this rank's tile."""
        return F.unfold(padded(tiles, input, view_of(self.plans, tiles)), self.kernel, self.dilation, 0, self.stride)


def unfold(
    site: TileSite,
    function: Function,
    input: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Result:
    """The pixels of each window become channels; rows and columns of windows become one dimension."""
    cut = map_cut(site, input)
    if function is Tensor.unfold:
        raise site.refuse("has no proven form on tiles as a tensor's method; use torch.nn.functional.unfold")
    y = function(input, kernel_size, dilation, padding, stride)
    axes = windows_of(kernel_size, stride, padding, dilation)
    sizes = [
        (input.shape[2 + number] + 2 * axis.padding - axis.reach) // axis.stride + 1 for number, axis in enumerate(axes)
    ]
    plans, bounds = planned(site, cut, axes, y.new_empty((1, 1, *sizes)))
    run = Unfold(plans, pair(kernel_size), pair(dilation), pair(stride))
    return site.mark(y, Cut((2, 2), bounds)), run


OPERATORS = {
    "conv2d": Operator(
        on_tiles=conv2d_on_tiles, on_strips=conv2d_on_strips, numbers=Numbers.PLANNED, fresh_gradient=True
    ),
    "conv_transpose2d": Operator(on_tiles=conv_transpose2d, numbers=Numbers.PLANNED),
    "unfold": Operator(on_tiles=unfold, numbers=Numbers.PLANNED),
}
