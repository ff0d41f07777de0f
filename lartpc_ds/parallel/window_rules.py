"""Rules of the functions that read a window of pixels: convolutions, pools, padding, resampling."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.layout import Bounds
from lartpc_ds.parallel import operators
from lartpc_ds.parallel.convolution import Geometry
from lartpc_ds.parallel.cuts import Cut, EmptyTile, Plans
from lartpc_ds.parallel.site import Result, Rule, Site, map_cut, pair
from lartpc_ds.windows import AxisPlan, Operator, Pixels, Shift, Transposed, Window, plan

__all__ = ["WINDOW_RULES"]

_THIN_PIXELS = 4


def _planned(site: Site, cut: Cut, axes: tuple[Operator, Operator], y: Tensor) -> tuple[Plans, tuple[Bounds, Bounds]]:
    """Plans of a windowed operator whose whole result is `y`; refused if some tile of it is empty."""
    bounds = []
    for axis, operator in enumerate(axes):
        out = operator.out_bounds(cut.bounds[axis], y.shape[2 + axis])
        if any(start >= stop for start, stop in itertools.pairwise(out)):
            raise site.refuse(
                f"cuts {y.shape[2 + axis]} {('rows', 'columns')[axis]} of its output at {list(out)}: a tile is empty; "
                f"take fewer layout.{('rows', 'cols')[axis]}, or leave the tiles earlier with layout.gather_at",
                EmptyTile,
            )
        bounds.append(out)
    plans = tuple(plan(operator, cut.bounds[axis], bounds[axis]) for axis, operator in enumerate(axes))
    if site.refuse_thin and any(_thin(axis, out) for axis, out in zip(plans, bounds, strict=True)):
        raise site.refuse("leaves tiles that are thinner than is worth their halos", EmptyTile)
    site.mark(y, Cut(cut.dims, (bounds[0], bounds[1])))
    return (plans[0], plans[1]), (bounds[0], bounds[1])


def _thin(axis: AxisPlan, out: Bounds) -> bool:
    """Is a tile's output below `_THIN_PIXELS`, or does its halo reach past the next tile?"""
    tiles = len(axis.needs)
    return tiles > 1 and (
        any(stop - start < _THIN_PIXELS for start, stop in itertools.pairwise(out))
        or any(axis.part(r, other) for r in range(tiles) for other in range(tiles) if abs(r - other) > 1)
    )


def conv2d(
    site: Site,
    function: Any,
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
    steps, spread = pair(stride), pair(dilation)
    if padding == "same":  # torch puts the odd pixel after
        pads = (spread[0] * (weight.shape[2] - 1) // 2, spread[1] * (weight.shape[3] - 1) // 2)
    else:
        pads = (0, 0) if padding == "valid" else pair(padding)
    rows, cols = (Window(weight.shape[2 + axis], steps[axis], pads[axis], spread[axis]) for axis in (0, 1))
    plans, bounds = _planned(site, cut, (rows, cols), y)
    return y, operators.Convolution(plans, bounds, Geometry(rows, cols))


def conv_transpose2d(
    site: Site,
    function: Any,
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
    steps, pads, spread = pair(stride), pair(padding), pair(dilation)
    rows, cols = (Transposed(weight.shape[2 + axis], steps[axis], pads[axis], spread[axis]) for axis in (0, 1))
    plans, bounds = _planned(site, cut, (rows, cols), y)
    return y, operators.TransposedConvolution(plans, bounds, steps, pads, spread, groups)


def max_pool2d(
    site: Site,
    function: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Result:
    """Everything but indices."""
    if return_indices:
        raise site.refuse("return_indices would give positions within a tile; leave it out")
    cut = map_cut(site, input)
    y = function(input, kernel_size, stride, padding, dilation, ceil_mode)
    kernel, pads, spread = pair(kernel_size), pair(padding), pair(dilation)
    steps = kernel if stride is None or stride == [] else pair(stride)
    rows, cols = (Window(kernel[axis], steps[axis], pads[axis], spread[axis]) for axis in (0, 1))
    plans, bounds = _planned(site, cut, (rows, cols), y)
    return y, operators.MaxPool(plans, bounds, Geometry(rows, cols))


def avg_pool2d(
    site: Site,
    function: Any,
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
    kernel, pads = pair(kernel_size), pair(padding)
    steps = kernel if stride is None or stride == [] else pair(stride)
    rows, cols = (Window(kernel[axis], steps[axis], pads[axis]) for axis in (0, 1))
    plans, bounds = _planned(site, cut, (rows, cols), y)
    if divisor_override is not None:
        divisors = (divisor_override,) * y.shape[2], (1,) * y.shape[3]
    else:
        divisors = (
            _window_sizes(rows, y.shape[2], input.shape[2], count_include_pad),
            _window_sizes(cols, y.shape[3], input.shape[3], count_include_pad),
        )
    return y, operators.AveragePool(plans, bounds, kernel, steps, divisors)


def _window_sizes(window: Window, outputs: int, size: int, with_padding: bool) -> tuple[int, ...]:
    """Pixels in the window of each output, those of the padding counted or not."""
    low, high = (-window.padding, size + window.padding) if with_padding else (0, size)
    windows = (window.need((out, out + 1)) for out in range(outputs))
    return tuple(min(stop, high) - max(start, low) for start, stop in windows)


def pad(
    site: Site, function: Any, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Result:
    """A constant around rows and columns; other dimensions are left to torch."""
    cut = map_cut(site, input)
    if mode != "constant":
        raise site.refuse(f"mode {mode!r} is not covered on tiles; pad with a constant")
    if len(pad) > 4:
        raise site.refuse("pads more than rows and columns; pad channels in a call of their own")
    y = function(input, pad, mode, value)
    left, _, top, _ = (*pad, 0, 0, 0, 0)[:4]
    plans, bounds = _planned(site, cut, (Shift(top), Shift(left)), y)
    return y, operators.Pad(plans, bounds, 0.0 if value is None else float(value))


def interpolate(
    site: Site,
    function: Any,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Result:
    """nearest, nearest-exact and bilinear, to larger or smaller maps; torch itself says which pixels it reads."""
    cut = map_cut(site, input)
    if mode not in ("nearest", "nearest-exact", "bilinear") or antialias:
        raise site.refuse(f"mode {mode!r}{' with antialias' if antialias else ''} is not covered on tiles")
    y = function(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    how = (size, scale_factor, mode, align_corners, recompute_scale_factor)
    sources = [_sources(input.shape[2 + axis], axis, y.shape[2 + axis], *how) for axis in (0, 1)]
    first, last, weights = (tuple(column) for column in zip(*sources, strict=True))
    axes = Pixels(first[0], last[0]), Pixels(first[1], last[1])
    plans, bounds = _planned(site, cut, axes, y)
    return y, operators.Resample(plans, bounds, weights, first, last)


def _sources(
    pixels: int, axis: int, outputs: int, size: Any, scale_factor: Any, mode: str, align_corners: Any, recompute: Any
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """First and last pixel that each output reads on one axis and the last one's weight, asked of torch on a ramp."""
    line = (pixels, 1) if axis == 0 else (1, pixels)
    target = None if size is None else ((outputs, 1) if axis == 0 else (1, outputs))
    factor = None
    if scale_factor is not None:
        factors = (scale_factor, scale_factor) if isinstance(scale_factor, int | float) else tuple(scale_factor)
        factor = (float(factors[0]), 1.0) if axis == 0 else (1.0, float(factors[1]))
    dtype = torch.float64 if mode == "bilinear" else torch.float32
    ramp = torch.arange(pixels, dtype=dtype, device="cpu").reshape(1, 1, *line)
    read = F.interpolate(ramp, target, factor, mode, align_corners, recompute).flatten().double()
    assert len(read) == outputs, (len(read), outputs)
    first = read.floor()
    weights = (read - first).tolist()
    last = [min(int(one) + 1, pixels - 1) if weight else int(one) for one, weight in zip(first, weights, strict=True)]
    return tuple(int(one) for one in first), tuple(last), tuple(weights)


WINDOW_RULES: dict[str, Rule] = {
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "pad": pad,
    "interpolate": interpolate,
    "upsample": interpolate,
}
