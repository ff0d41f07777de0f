"""Max and average pools with a window."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Function, Plans, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Window
from lartpc_ds.exact.kernels.convolution import Geometry
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.kernels.max_pool import max_pool
from lartpc_ds.exact.ops.operator import (
    Numbers,
    Operator,
    Pair,
    Result,
    Site,
    StripSite,
    TileSite,
    map_cut,
    map_rows,
    pair,
)
from lartpc_ds.exact.ops.windows import OutBounds, outputs_of, planned, windowed_rows, windows_of

__all__ = ["OPERATORS", "MaxPool"]


def _windows(kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> tuple[Window, Window]:
    """The windows of rows and columns; without a stride a pool's windows lie side by side."""
    return windows_of(kernel_size, kernel_size if stride is None or stride == [] else stride, padding, dilation)


def _outputs(size: int, window: Window, ceil_mode: bool) -> int:
    """Output rows of a pool; with `ceil_mode` the last window may hang over, if it starts inside the map or before."""
    places = (size + 2 * window.padding - window.reach) / window.stride
    outputs = (math.ceil(places) if ceil_mode else math.floor(places)) + 1
    return outputs - (ceil_mode and (outputs - 1) * window.stride >= size + window.padding)


def _refuse_max_pool(
    site: Site, axes: tuple[Window, Window], size: Iterable[int], ceil_mode: bool, return_indices: bool
) -> None:
    if return_indices:
        raise site.refuse(f"return_indices would give positions within a {site.words.part}; leave it out")
    for window, pixels in zip(axes, size, strict=True):
        if window.misses(_outputs(pixels, window, ceil_mode), pixels):
            # torch's backward then writes to memory that is not its own
            raise site.refuse(
                "has a window that reads padding only, which torch's backward does not survive, either; take a "
                "smaller dilation"
            )


@dataclass(frozen=True, slots=True)
class MaxPool:
    """This rank's outputs of F.max_pool2d: outside the image is minus infinity, for torch as for us."""

    plans: Plans
    bounds: OutBounds
    geometry: Geometry

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """The outputs of this rank's tile."""
        return max_pool(tiles, view_of(self.plans, tiles), self.geometry, outputs_of(self.bounds, tiles).shape, input)


def max_pool2d_on_tiles(
    site: TileSite,
    function: Function,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Result:
    """Everything but indices."""
    axes = _windows(kernel_size, stride, padding, dilation)
    cut = map_cut(site, input)
    _refuse_max_pool(site, axes, input.shape[2:], ceil_mode, return_indices)
    y = function(input, kernel_size, stride, padding, dilation, ceil_mode)
    plans, bounds = planned(site, cut, axes, y)
    return y, MaxPool(plans, bounds, Geometry(*axes))


def max_pool2d_on_strips(
    site: StripSite,
    function: Function,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Result:
    """Everything but indices."""
    axes = _windows(kernel_size, stride, padding, dilation)
    size = map_rows(site, input).size
    _refuse_max_pool(site, axes, (size, input.shape[3]), ceil_mode, return_indices)
    x, out = windowed_rows(site, input, axes[0], _outputs(size, axes[0], ceil_mode), float("-inf"))
    y = function(x, kernel_size, stride, (0, axes[1].padding), dilation, ceil_mode)
    return site.mark_rows(y, out), None


def _window_sizes(window: Window, outputs: Iterable[int], size: int, with_padding: bool) -> tuple[int, ...]:
    """Pixels in the window of each output, those of the padding counted or not."""
    low, high = (-window.padding, size + window.padding) if with_padding else (0, size)
    windows = (window.need((out, out + 1)) for out in outputs)
    return tuple(min(stop, high) - max(start, low) for start, stop in windows)


@dataclass(frozen=True, slots=True)
class AveragePool:
    """This rank's outputs of F.avg_pool2d, divided by what their places in the whole image ask for."""

    plans: Plans
    bounds: OutBounds
    kernel: Pair
    stride: Pair
    divisors: tuple[tuple[int, ...], tuple[int, ...]]
    """Of rows and columns of the whole output; an output is divided by their product."""

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """The outputs of this rank's tile."""
        rows, cols = (self.divisors[axis][slice(*out)] for axis, out in enumerate(outputs_of(self.bounds, tiles)))
        x = padded(tiles, input, view_of(self.plans, tiles))
        if len({*rows}) == len({*cols}) == 1:
            return F.avg_pool2d(x, self.kernel, self.stride, divisor_override=rows[0] * cols[0])
        means = F.avg_pool2d(x, self.kernel, self.stride)  # not sums, which float16 may not hold
        shares = [
            torch.tensor([pixels / value for value in values], dtype=torch.float64, device=means.device)
            for pixels, values in zip(self.kernel, (rows, cols), strict=True)
        ]
        return means * (shares[0][:, None] * shares[1]).to(means.dtype)


def avg_pool2d_on_tiles(
    site: TileSite,
    function: Function,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """Everything."""
    cut = map_cut(site, input)
    y = function(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    axes = _windows(kernel_size, stride, padding)
    plans, bounds = planned(site, cut, axes, y)
    if divisor_override is not None:
        divisors = (divisor_override,) * y.shape[2], (1,) * y.shape[3]
    else:
        divisors = (
            _window_sizes(axes[0], range(y.shape[2]), input.shape[2], count_include_pad),
            _window_sizes(axes[1], range(y.shape[3]), input.shape[3], count_include_pad),
        )
    return y, AveragePool(plans, bounds, pair(kernel_size), (axes[0].stride, axes[1].stride), divisors)


def avg_pool2d_on_strips(
    site: StripSite,
    function: Function,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """Everything; at a border the divisor is that of the window's place in the whole map."""
    window, across = _windows(kernel_size, stride, padding)
    size = map_rows(site, input).size
    x, out = windowed_rows(site, input, window, _outputs(size, window, ceil_mode), 0.0)
    y = function(x, kernel_size, stride, (0, across.padding), ceil_mode, count_include_pad, divisor_override)
    counts = _window_sizes(window, range(out.start, out.stop), size, count_include_pad)
    if divisor_override is None and any(count != window.kernel for count in counts):
        y = y * y.new_tensor([window.kernel / max(count, 1) for count in counts])[:, None]
    return site.mark_rows(y, out), None


OPERATORS = {
    "max_pool2d": Operator(
        on_tiles=max_pool2d_on_tiles, on_strips=max_pool2d_on_strips, numbers=Numbers.PLANNED, fresh_gradient=True
    ),
    "avg_pool2d": Operator(on_tiles=avg_pool2d_on_tiles, on_strips=avg_pool2d_on_strips, numbers=Numbers.PLANNED),
}
