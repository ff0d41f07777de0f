"""Functions that read a window of pixels share these bounds and halos of tiles, and rows and padding of strips.

On tiles the whole result says how many outputs there are, and the plan says which pixels each tile needs for its own.
On strips, rows are padded only where a strip touches the true border of its map, at every layer anew: rows outside the
image are zero (for a max pool minus infinity) to *each* operator, never what an earlier layer would make of them. A
strip in the midst of a map is a view of it, without a copy. Rejected: padding the image once, which is wrong at the
border after the first layer. A patch reads its surroundings from other patches, and padding where these end.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Cut, EmptyTile, Plans
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.readings import PixelReading, TapReading
from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import AxisOperator, AxisPlan, Rect, Same, Transposed, Window, plan_axis, tile_of
from lartpc_ds.exact.ops.operator import PatchCallSite, StripCallSite, TileCallSite, filled, map_patches, map_rows, pair
from lartpc_ds.layout import Bounds

__all__ = ["OutBounds", "outputs_of", "planned", "read_patches", "same_pixels", "windowed_rows", "windows_of"]

OutBounds = tuple[Bounds, Bounds]
"""The bounds of the rows and of the columns of a result."""


def windows_of(kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> tuple[Window, Window]:
    """Return the windows of rows and of columns, from arguments as torch takes them."""
    kernels, strides, pads, spread = pair(kernel), pair(stride), pair(padding), pair(dilation)
    rows, cols = (Window(kernels[axis], strides[axis], pads[axis], spread[axis]) for axis in (0, 1))
    return rows, cols


def planned(site: TileCallSite, cut: Cut, axes: Sequence[AxisOperator], y: Tensor) -> tuple[Plans, OutBounds]:
    """Return the plans of a windowed operator whose whole result is `y`, and where `y` is cut.

    The call is refused if a tile would be empty.
    """
    rows, cols = (
        filled(site, axis.out_bounds(bounds, y.shape[2 + number]), y.shape[2 + number], number)
        for number, (axis, bounds) in enumerate(zip(axes, cut.bounds, strict=True))
    )
    plans = plan_axis(axes[0], cut.bounds[0], rows), plan_axis(axes[1], cut.bounds[1], cols)
    if site.refuse_thin and any(_reaches_far(axis) for axis in plans):
        raise site.refuse("leaves tiles that are thinner than is worth their halos", EmptyTile)
    site.mark(y, Cut(cut.dims, (rows, cols)))
    return plans, (rows, cols)


def _reaches_far(axis: AxisPlan) -> bool:
    """Return whether some tile's halo reaches past the next tile."""
    tiles = range(len(axis.needs))
    return any(axis.part(r, other) for r in tiles for other in tiles if abs(r - other) > 1)


def same_pixels(source: OutBounds, target: OutBounds) -> Plans:
    """Return the plans that move a map from one cut to another."""
    rows, cols = (plan_axis(Same(bounds), before, bounds) for before, bounds in zip(source, target, strict=True))
    return rows, cols


def outputs_of(bounds: OutBounds, tiles: Tiles) -> Rect:
    """Return the rectangle that this rank owns of a map that is cut at `bounds`."""
    return tile_of(bounds, tiles.row, tiles.col)


def windowed_rows(
    site: StripCallSite, x: Tensor, window: Window, outputs: int, value: float, columns: tuple[int, int] = (0, 0)
) -> tuple[Tensor, Rows]:
    """Return exactly the rows that the strip's windows read, and the rows that come out.

    `columns` are padded as well.
    """
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


Axes = tuple[Window | Transposed, Window | Transposed]


def read_patches(
    site: PatchCallSite, x: Tensor, axes: Axes, outputs: tuple[int, int], *, by_tap: bool = False
) -> tuple[Patches, PixelReading]:
    """Return the patches of the result of a windowed operator, and what each of them reads.

    A window of one pixel reads no other, so that the operator then runs with stride 1. With `by_tap`, patches of few
    pixels read the window of each pixel. The call is refused if the stride does not divide the patches, or if the
    result is empty.
    """
    patches = map_patches(site, x)
    if min(outputs) < 1:
        raise site.refuse(f"leaves no pixel of a map of {patches.size}")
    reads: list[Sequence[int]] = []
    for axis, side in zip(axes, patches.shape, strict=True):
        after = axis.patch_after(side)
        if after is None:
            raise site.refuse(
                f"has a stride of {axis.stride}, which does not divide patches of {side} pixels; take a larger "
                f"memory.lit_block, a multiple of all strides, or {site.words.way_out}"
            )
        if isinstance(axis, Window) and (axis.kernel == 1 or by_tap):
            taps = range(0, axis.reach, axis.dilation)
            reads.append([output * axis.stride - axis.padding + tap for output in range(after) for tap in taps])
        else:
            reads.append(range(*axis.need((0, after))))
    key = id(patches), axes, outputs, by_tap
    if key not in site.known_readings:
        target = patches.through(*axes, outputs)
        reading = (TapReading if by_tap else PixelReading)(patches, target, reads[0], reads[1])
        site.known_readings[key] = patches, target, reading
    return site.known_readings[key][1:]
