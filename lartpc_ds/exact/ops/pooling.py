"""Max and average pools with a window.

An average pool divides by the number of pixels that its window has in the whole image, which a tile or a strip cannot
see, so the plan holds the divisors. A max pool takes the pixels outside the image for minus infinity.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Function, Plans, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Window
from lartpc_ds.exact.kernels.convolution import Geometry
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.kernels.max_pool import max_pool
from lartpc_ds.exact.kernels.patches import max_pooled, repeat_edges, windows
from lartpc_ds.exact.ops.operator import (
    CallSite,
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

__all__ = ["OPERATORS", "MaxPool"]


def _windows(kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> tuple[Window, Window]:
    """Return the windows of rows and columns; without a stride a pool's windows lie side by side."""
    return windows_of(kernel_size, kernel_size if stride is None or stride == [] else stride, padding, dilation)


def _outputs(size: int, window: Window, ceil_mode: bool) -> int:
    """Return the number of output rows of a pool.

    With `ceil_mode` the last window may hang over, if it starts inside the map or before it.
    """
    places = (size + 2 * window.padding - window.reach) / window.stride
    outputs = (math.ceil(places) if ceil_mode else math.floor(places)) + 1
    return outputs - (ceil_mode and (outputs - 1) * window.stride >= size + window.padding)


class _MaxPool2d(NamedTuple):
    """The arguments of F.max_pool2d."""

    input: Tensor
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    return_indices: bool = False

    def windows(self, site: CallSite, size: Iterable[int]) -> tuple[Window, Window]:
        """Return the windows of a call on a map of this size; calls that are not covered are refused."""
        if self.return_indices:
            raise site.refuse(f"return_indices would give positions within a {site.words.part}; leave it out")
        axes = _windows(self.kernel_size, self.stride, self.padding, self.dilation)
        for axis, pixels in zip(axes, size, strict=True):
            if axis.misses(_outputs(pixels, axis, self.ceil_mode), pixels):
                # torch's backward then writes to memory that is not its own
                raise site.refuse(
                    "has a window that reads padding only, which torch's backward does not survive, either; take a "
                    "smaller dilation"
                )
        return axes


@dataclass(frozen=True, slots=True)
class MaxPool:
    """This rank's outputs of F.max_pool2d; pixels outside the image are minus infinity, as in torch."""

    plans: Plans
    bounds: OutBounds
    geometry: Geometry

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        return max_pool(tiles, view_of(self.plans, tiles), self.geometry, outputs_of(self.bounds, tiles).shape, input)


def max_pool2d_on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan any max pool that gives no indices."""
    given = _MaxPool2d(*args, **kwargs)
    cut, axes, y = map_cut(site, given.input), given.windows(site, given.input.shape[2:]), function(*args, **kwargs)
    plans, bounds = planned(site, cut, axes, y)
    return y, MaxPool(plans, bounds, Geometry(*axes))


def max_pool2d_on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any max pool that gives no indices."""
    given = _MaxPool2d(*args, **kwargs)
    size = map_rows(site, given.input).size
    rows, cols = given.windows(site, (size, given.input.shape[3]))
    x, out = windowed_rows(site, given.input, rows, _outputs(size, rows, given.ceil_mode), float("-inf"))
    y = function(x, given.kernel_size, given.stride, (0, cols.padding), given.dilation, given.ceil_mode)
    return site.mark_rows(y, out), None


def max_pool2d_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any max pool that gives no indices and whose stride divides the patches."""
    given = _MaxPool2d(*args, **kwargs)
    size = map_patches(site, given.input).size
    rows, cols = given.windows(site, size)
    outputs = _outputs(size[0], rows, given.ceil_mode), _outputs(size[1], cols, given.ceil_mode)
    target, reading = read_patches(site, given.input, (rows, cols), outputs)
    steps = [1 if axis.kernel == 1 else axis.stride for axis in (rows, cols)]
    y = max_pooled(given.input, reading, target, pair(given.kernel_size), (steps[0], steps[1]), pair(given.dilation))
    return site.mark_patches(y, target), None


class _AvgPool2d(NamedTuple):
    """The arguments of F.avg_pool2d."""

    input: Tensor
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    def window_sizes(self, window: Window, outputs: Iterable[int], size: int) -> tuple[int, ...]:
        """Return how many pixels the window of each output has, on an axis of this size.

        Pixels of the padding count if `count_include_pad` says so.
        """
        low, high = (-window.padding, size + window.padding) if self.count_include_pad else (0, size)
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
    """The divisors of rows and columns of the whole output; an output is divided by their product."""

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        rows, cols = (self.divisors[axis][slice(*out)] for axis, out in enumerate(outputs_of(self.bounds, tiles)))
        x = padded(tiles, input, view_of(self.plans, tiles))
        if len({*rows}) == len({*cols}) == 1:
            return F.avg_pool2d(x, self.kernel, self.stride, divisor_override=rows[0] * cols[0])
        means = F.avg_pool2d(x, self.kernel, self.stride)  # these are not sums, which float16 may not hold
        shares = [
            torch.tensor([pixels / value for value in values], dtype=torch.float64, device=means.device)
            for pixels, values in zip(self.kernel, (rows, cols), strict=True)
        ]
        return means * (shares[0][:, None] * shares[1]).to(means.dtype)


def avg_pool2d_on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan any average pool."""
    given = _AvgPool2d(*args, **kwargs)
    cut, y, (rows, cols) = map_cut(site, given.input), function(*given), _windows(*given[1:4])
    plans, bounds = planned(site, cut, (rows, cols), y)
    divisors = (
        given.window_sizes(rows, range(y.shape[2]), given.input.shape[2]),
        given.window_sizes(cols, range(y.shape[3]), given.input.shape[3]),
    )
    if given.divisor_override is not None:
        divisors = (given.divisor_override,) * y.shape[2], (1,) * y.shape[3]
    return y, AveragePool(plans, bounds, pair(given.kernel_size), (rows.stride, cols.stride), divisors)


def avg_pool2d_on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any average pool; at a border the divisor is that of the window's place in the whole map."""
    given = _AvgPool2d(*args, **kwargs)
    size, (rows, cols) = map_rows(site, given.input).size, _windows(*given[1:4])
    x, out = windowed_rows(site, given.input, rows, _outputs(size, rows, given.ceil_mode), 0.0)
    y = function(*given._replace(input=x, padding=(0, cols.padding)))
    counts = given.window_sizes(rows, range(out.start, out.stop), size)
    if given.divisor_override is None and any(count != rows.kernel for count in counts):
        y = y * y.new_tensor([rows.kernel / max(count, 1) for count in counts])[:, None]
    return site.mark_rows(y, out), None


def avg_pool2d_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run any average pool whose stride divides the patches; divisors are those of the places in the whole map."""
    given = _AvgPool2d(*args, **kwargs)
    patches, axes = map_patches(site, given.input), _windows(*given[1:4])
    outputs = [_outputs(size, axis, given.ceil_mode) for size, axis in zip(patches.size, axes, strict=True)]
    target, reading = read_patches(site, given.input, axes, (outputs[0], outputs[1]))
    kernel, steps = pair(given.kernel_size), [1 if axis.kernel == 1 else axis.stride for axis in axes]
    y = F.avg_pool2d(windows(given.input, reading), kernel, steps, divisor_override=given.divisor_override)
    for dim, axis in enumerate(axes):
        counts = np.array(given.window_sizes(axis, range(outputs[dim]), patches.size[dim]))
        if given.divisor_override is None and (counts != kernel[dim]).any():
            at = (target.row, target.col)[dim][:, None] * target.shape[dim] + np.arange(target.shape[dim])
            shares = kernel[dim] / np.maximum(counts[np.minimum(at, outputs[dim] - 1)], 1)
            y = y * torch.from_numpy(shares).to(y.device, y.dtype)[:, None].unsqueeze(3 - dim)
    return site.mark_patches(repeat_edges(y, target), target), None


OPERATORS = {
    "max_pool2d": Operator(
        on_tiles=max_pool2d_on_tiles,
        on_strips=max_pool2d_on_strips,
        on_patches=max_pool2d_on_patches,
        numbers=Numbers.PLANNED,
        fresh_gradient=True,
    ),
    "avg_pool2d": Operator(
        on_tiles=avg_pool2d_on_tiles,
        on_strips=avg_pool2d_on_strips,
        on_patches=avg_pool2d_on_patches,
        numbers=Numbers.PLANNED,
    ),
}
