"""Rules of the functions that read a window of pixels: convolutions, pools, padding."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, EmptyTile, Plans
from lartpc_ds.exact.grid.site import Result, Rule, Site, filled, map_cut, pair
from lartpc_ds.exact.grid.windows import AxisPlan, Operator, Shift, Transposed, Window, plan
from lartpc_ds.exact.ops import operators
from lartpc_ds.exact.ops.convolution import Geometry
from lartpc_ds.exact.ops.selection_rules import pad_by_index
from lartpc_ds.layout import Bounds

__all__ = ["WINDOW_RULES"]


def _planned(site: Site, cut: Cut, axes: tuple[Operator, Operator], y: Tensor) -> tuple[Plans, tuple[Bounds, Bounds]]:
    """Plans of a windowed operator whose whole result is `y`; refused if some tile of it is empty."""
    bounds = [
        filled(site, operator.out_bounds(cut.bounds[axis], y.shape[2 + axis]), y.shape[2 + axis], axis)
        for axis, operator in enumerate(axes)
    ]
    plans = tuple(plan(operator, cut.bounds[axis], bounds[axis]) for axis, operator in enumerate(axes))
    if site.refuse_thin and any(_reaches_far(axis) for axis in plans):
        raise site.refuse("leaves tiles that are thinner than is worth their halos", EmptyTile)
    site.mark(y, Cut(cut.dims, (bounds[0], bounds[1])))
    return (plans[0], plans[1]), (bounds[0], bounds[1])


def _reaches_far(axis: AxisPlan) -> bool:
    """Does a tile's halo reach past the next tile?"""
    tiles = range(len(axis.needs))
    return any(axis.part(r, other) for r in tiles for other in tiles if abs(r - other) > 1)


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
    if rows.misses(y.shape[2], input.shape[2]) or cols.misses(y.shape[3], input.shape[3]):
        raise site.refuse("has a window that reads padding only, which torch's backward does not survive, either")
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


def unfold(
    site: Site,
    function: Any,
    input: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Result:
    """The pixels of each window as channels; rows and columns of windows become one dimension."""
    cut = map_cut(site, input)
    if function is Tensor.unfold:
        raise site.refuse("has no proven form on tiles as a tensor's method; use torch.nn.functional.unfold")
    y = function(input, kernel_size, dilation, padding, stride)
    kernel, spread, pads, steps = pair(kernel_size), pair(dilation), pair(padding), pair(stride)
    rows, cols = (Window(kernel[axis], steps[axis], pads[axis], spread[axis]) for axis in (0, 1))
    sizes = [
        (input.shape[2 + axis] + 2 * pads[axis] - window.reach) // steps[axis] + 1
        for axis, window in enumerate((rows, cols))
    ]
    plans, bounds = _planned(site, cut, (rows, cols), y.new_empty((1, 1, *sizes)))
    return site.mark(y, Cut((2, 2), bounds)), operators.Unfold(plans, kernel, spread, steps)


def pad(
    site: Site, function: Any, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Result:
    """Around rows and columns: a constant, or by reflection, replication or the opposite edge."""
    cut = map_cut(site, input)
    if len(pad) > 4:
        raise site.refuse("pads more than rows and columns; pad channels in a call of their own")
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    if mode != "constant":
        return pad_by_index(site, function, input, (left, right, top, bottom), mode)
    y = function(input, pad, mode, value)
    plans, bounds = _planned(site, cut, (Shift(top), Shift(left)), y)
    return y, operators.Pad(plans, bounds, 0.0 if value is None else float(value))


WINDOW_RULES: dict[str, Rule] = {
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "unfold": unfold,
    "pad": pad,
}
