"""Padding goes around rows and columns: by a constant, or by reflection, replication or the opposite edge.

A constant is a halo that no rank owns. The other modes read pixels of the map by index, which torch itself is asked
for, so that no mode is written twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import Function, Plans, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Shift, Window
from lartpc_ds.exact.kernels.fetch import Taps
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.kernels.patches import repeat_edges, windows
from lartpc_ds.exact.ops.operator import (
    Numbers,
    Operator,
    PatchCallSite,
    Result,
    StripCallSite,
    TileCallSite,
    map_cut,
    map_patches,
    map_rows,
)
from lartpc_ds.exact.ops.resampling import selected
from lartpc_ds.exact.ops.windows import planned, read_patches

__all__ = ["OPERATORS"]


@dataclass(frozen=True, slots=True)
class Pad:
    """This rank's outputs of F.pad with a constant."""

    plans: Plans
    value: float

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        y = padded(tiles, input, view_of(self.plans, tiles), self.value)
        shared = y.untyped_storage().data_ptr() == input.untyped_storage().data_ptr()
        return y.clone() if shared else y  # as in torch, y is never a part of x, which a function in place would change


def pad_on_tiles(
    site: TileCallSite, function: Function, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Result:
    """Plan padding by a constant, or by pixels of the map itself."""
    cut = map_cut(site, input)
    if len(pad) > 4:
        raise site.refuse("pads more than rows and columns; pad channels in a call of their own")
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    y = function(input, pad, mode, value)
    if mode == "constant":
        plans, _ = planned(site, cut, (Shift(top), Shift(left)), y)
        return y, Pad(plans, 0.0 if value is None else float(value))
    taps = []
    for axis, (before, after) in enumerate(((top, bottom), (left, right))):
        line, around = ((-1, 1), (0, 0, before, after)) if axis == 0 else ((1, -1), (before, after, 0, 0))
        ramp = torch.arange(input.shape[2 + axis], dtype=torch.float64, device="cpu").reshape(1, 1, *line)
        taps.append(Taps((tuple(int(pixel) for pixel in F.pad(ramp, around, mode).flatten()),)))
    moved = [[bound + before for bound in bounds] for bounds, before in zip(cut.bounds, (top, left), strict=True)]
    return selected(site, cut, moved, taps, y)


def pad_on_strips(
    site: StripCallSite,
    function: Function,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: Any = None,
) -> Result:
    """Pad rows by a constant, at true borders only; other dimensions are left to torch."""
    rows, (left, right, top, bottom, *others) = map_rows(site, input), (*pad, *(0,) * (4 - len(pad)))
    if mode != "constant" or top < 0 or bottom < 0:
        raise site.refuse(f"mode {mode!r} by {list(pad)} is not covered; pad with a constant, and crop no rows")
    here = (top if rows.start == 0 else 0, bottom if rows.stop == rows.size else 0)
    y = function(input, (left, right, *here, *others), mode, value)
    return site.mark_rows(y, rows.padded(top, bottom)), None


def pad_on_patches(
    site: PatchCallSite,
    function: Function,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: Any = None,
) -> Result:
    """Pad rows and columns by a constant, or crop them; the patches then read pixels that lie further up or left."""
    if mode != "constant" or len(pad) > 4:
        raise site.refuse(f"mode {mode!r} by {list(pad)} is not covered; pad rows and columns with a constant")
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    height, width = map_patches(site, input).size
    axes = Window(1, padding=top), Window(1, padding=left)
    target, reading = read_patches(site, input, axes, (height + top + bottom, width + left + right))
    y = windows(input, reading, 0.0 if value is None else float(value))
    return site.mark_patches(repeat_edges(y, target), target), None


OPERATORS = {
    "pad": Operator(on_tiles=pad_on_tiles, on_strips=pad_on_strips, on_patches=pad_on_patches, numbers=Numbers.PLANNED)
}
