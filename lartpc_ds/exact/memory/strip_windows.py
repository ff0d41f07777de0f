"""Rules of the functions that read a window of rows: convolutions, pools, padding.

A rule pads rows only where a strip touches the true border of its map, at every layer anew: rows outside the image are
zero (for a max pool minus infinity) to *each* operator, never what an earlier layer would make of them. A strip in the
midst of a map is a view of it, without a copy.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.site import pair
from lartpc_ds.exact.grid.windows import Window
from lartpc_ds.exact.memory.rows import Rows, pool_outputs
from lartpc_ds.exact.memory.strip_site import StripRule, StripSite, map_rows

__all__ = ["STRIP_WINDOW_RULES"]


def _windows(
    site: StripSite, x: Tensor, window: Window, outputs: int, value: float, columns: tuple[int, int] = (0, 0)
) -> tuple[Tensor, Rows]:
    """Exactly the rows that the strip's windows read, and the rows that come out; `columns` are padded as well."""
    rows = map_rows(site, x)
    out = rows.through(window, outputs)
    if out.count < 1:
        raise site.refuse(f"leaves a strip without rows ({outputs} in all); take fewer memory.stream_strips")
    first, last = window.need((out.start, out.stop))
    begin = min(max(first, rows.start), rows.stop)
    end = max(min(last, rows.stop), begin)
    if (begin, end) != (rows.start, rows.stop):
        x = x.narrow(2, begin - rows.start, end - begin)
    top, bottom = max(min(begin, last) - first, 0), max(last - max(end, first), 0)
    if top or bottom or any(columns):
        x = F.pad(x, (*columns, top, bottom), value=value)
    return x, out


def conv2d(
    site: StripSite,
    function: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Any kernel, stride, padding, dilation and groups."""
    steps, spread, kernel = pair(stride), pair(dilation), tuple(weight.shape[2:])
    around = tuple(spread[axis] * (kernel[axis] - 1) for axis in (0, 1))
    if padding == "same":  # torch puts the odd pixel after
        pads, total, odd = (around[0] // 2, around[1] // 2), around[0], around[1] % 2
    else:
        pads, odd = (0, 0) if padding == "valid" else pair(padding), 0
        total = 2 * pads[0]
    window = Window(kernel[0], steps[0], pads[0], spread[0])
    outputs = (map_rows(site, input).size + total - window.reach) // window.stride + 1
    x, out = _windows(site, input, window, outputs, 0.0, (0, odd))
    return site.mark(function(x, weight, bias, stride, (0, pads[1]), dilation, groups), out)


def max_pool2d(
    site: StripSite,
    function: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Everything but indices."""
    if return_indices:
        raise site.refuse("return_indices would give positions within a strip; leave it out")
    kernel, pads, spread = pair(kernel_size), pair(padding), pair(dilation)
    steps = kernel if stride is None or stride == [] else pair(stride)
    window = Window(kernel[0], steps[0], pads[0], spread[0])
    size = map_rows(site, input).size
    outputs = pool_outputs(size, window, ceil_mode)
    across = Window(kernel[1], steps[1], pads[1], spread[1])
    if window.misses(outputs, size) or across.misses(
        pool_outputs(input.shape[3], across, ceil_mode), input.shape[3]
    ):  # torch's backward then writes to memory that is not its own
        raise site.refuse(
            "has a window that reads padding only, which torch's backward does not survive; take a smaller dilation or "
            "end the front earlier with memory.stream_until"
        )
    x, out = _windows(site, input, window, outputs, float("-inf"))
    return site.mark(function(x, kernel_size, stride, (0, pads[1]), dilation, ceil_mode), out)


def avg_pool2d(
    site: StripSite,
    function: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Everything; at a border the divisor is that of the window's place in the whole map."""
    kernel, pads = pair(kernel_size), pair(padding)
    steps = kernel if stride is None or stride == [] else pair(stride)
    window, size = Window(kernel[0], steps[0], pads[0]), map_rows(site, input).size
    x, out = _windows(site, input, window, pool_outputs(size, window, ceil_mode), 0.0)
    y = function(x, kernel_size, stride, (0, pads[1]), ceil_mode, count_include_pad, divisor_override)
    low, high = (-pads[0], size + pads[0]) if count_include_pad else (0, size)
    windows = [window.need((row, row + 1)) for row in range(out.start, out.stop)]
    counts = [min(stop, high) - max(start, low) for start, stop in windows]
    if divisor_override is None and any(count != kernel[0] for count in counts):
        y = y * y.new_tensor([kernel[0] / max(count, 1) for count in counts])[:, None]
    return site.mark(y, out)


def pad(
    site: StripSite, function: Any, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Tensor:
    """A constant around rows, at true borders only; other dimensions are left to torch."""
    rows, (left, right, top, bottom, *others) = map_rows(site, input), (*pad, *(0,) * (4 - len(pad)))
    if mode != "constant" or top < 0 or bottom < 0:
        raise site.refuse(f"mode {mode!r} by {list(pad)} is not covered; pad with a constant, and crop no rows")
    here = (top if rows.start == 0 else 0, bottom if rows.stop == rows.size else 0)
    return site.mark(function(input, (left, right, *here, *others), mode, value), rows.padded(top, bottom))


STRIP_WINDOW_RULES: dict[str, StripRule] = {
    "avg_pool2d": avg_pool2d,
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "pad": pad,
}
