"""A tile is convolved without a padded copy of it.

A convolution is linear, so a tile's outputs are those of the tile with zeros around it plus what the halo adds to the
rows and columns at its edges. The first term needs no neighbour and no copy: it is torch's own convolution with its own
padding, computed while the halo is under way. The second is a convolution of four thin bands, each holding its halo
pixels and zeros elsewhere. Rejected: concatenating tile and halo before each convolution, which takes a third of its
time and a second copy of the largest map.

Where a symmetric padding cannot express the tile (a stride that does not divide the tile's start), that copy is made
after all. Each rank may take either way, because both are one autograd node that exchanges the same messages
(`grid.order`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Range, Rect, TileView, Window
from lartpc_ds.exact.kernels.halo import add_home, assembled, fetch, part_of, send_home, taken_apart
from lartpc_ds.exact.kernels.weight_gradients import weight_gradient

__all__ = ["Geometry", "convolve", "in_place", "outputs_without_halo"]

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The windows of a convolution or a pool on both axes."""

    rows: Window
    cols: Window

    @property
    def stride(self) -> Pair:
        """The strides of (rows, columns)."""
        return self.rows.stride, self.cols.stride

    @property
    def dilation(self) -> Pair:
        """The dilations of (rows, columns)."""
        return self.rows.dilation, self.cols.dilation


class InPlace(NamedTuple):
    """How one axis of a tile is convolved in place: drop `skip` pixels, pad with `padding` zeros on both sides."""

    skip: int
    padding: int


def in_place(window: Window, own: Range, need: Range, outputs: int) -> InPlace | None:
    """Return how an axis is convolved in place.

    It is None where torch's symmetric padding would not give exactly the `outputs` of the needed pixels.
    """
    before = own[0] - need[0]
    skip, padding = max(-before, 0), max(before, 0)
    length = own[1] - own[0] - skip
    given = (length + 2 * padding - window.reach) // window.stride + 1
    return InPlace(skip, padding) if length > 0 and given == outputs else None


def outputs_without_halo(window: Window, own: Range, need: Range, size: int, outputs: int) -> tuple[int, int]:
    """Return (first, last): outputs [0, first) reach back into the halo, and outputs [last, outputs) reach forward."""
    first, last = 0, outputs
    if own[0] > 0 and need[0] < own[0]:
        first = min(-(-(own[0] - need[0]) // window.stride), outputs)
    if own[1] < size and need[1] > own[1]:
        last = max(-(-(own[1] - need[0] - window.reach + 1) // window.stride), 0)
    return first, last


class _HaloBand(NamedTuple):
    """A band of halo pixels along one edge of the tile, and the outputs that it adds to."""

    rect: Rect
    pad: tuple[int, int, int, int]
    """F.pad's (left, right, top, bottom) that make its windows whole.

    Negative numbers drop pixels that no window needs.
    """
    padding: Pair
    skip: int
    """The number of its rows that the tile's outputs do not need."""
    outputs: Rect
    """A rectangle of this tile's outputs."""


def _bands(window: Window, own: Range, need: Range, size: int, outputs: int) -> list[tuple[Range, Pair, Range]]:
    """Return the halo before and after the own pixels: (its pixels, F.pad's pair, outputs that it adds to)."""
    first, last = outputs_without_halo(window, own, need, size, outputs)
    bands = []
    if first > 0:
        reached = need[0] + (first - 1) * window.stride + window.reach
        bands.append(((need[0], own[0]), (0, reached - own[0]), (0, first)))
    if last < outputs:
        bands.append(((own[1], need[1]), (own[1] - need[0] - last * window.stride, 0), (last, outputs)))
    return bands


def _halo_bands(geometry: Geometry, here: TileView, axes: tuple[InPlace, InPlace], outputs: Pair) -> list[_HaloBand]:
    """Return the bands of a tile.

    Those above and below have the whole needed width, corners included; those on the left and right have the own rows.
    """
    bands = []
    everything = Rect((0, outputs[0]), (0, outputs[1]))
    for pixels, (before, after), rows in _bands(geometry.rows, here.own.rows, here.need.rows, here.size[0], outputs[0]):
        rect = Rect(pixels, here.need.cols)
        bands.append(_HaloBand(rect, (0, 0, before, after), (0, 0), 0, everything._replace(rows=rows)))
    for pixels, (before, after), cols in _bands(geometry.cols, here.own.cols, here.need.cols, here.size[1], outputs[1]):
        rect = Rect(here.own.rows, pixels)
        padding, skip = (axes[0].padding, 0), axes[0].skip
        bands.append(_HaloBand(rect, (before, after, 0, 0), padding, skip, everything._replace(cols=cols)))
    return bands


def convolve(
    tiles: Tiles,
    here: TileView,
    geometry: Geometry,
    outputs: Pair,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
) -> Tensor:
    """(N, C, own) -> (N, K, outputs), this rank's part of the convolution of the whole map."""
    rows = in_place(geometry.rows, here.own.rows, here.need.rows, outputs[0])
    cols = in_place(geometry.cols, here.own.cols, here.need.cols, outputs[1])
    axes = None if rows is None or cols is None else (rows, cols)
    y: Tensor = _Convolution.apply(x, weight, bias, tiles, here, geometry, axes, outputs, groups)  # type: ignore[no-untyped-call]
    return y


class _Convolution(Messenger):
    """x (N, C, own), weight (K, C / groups, k, k), bias (K) or None -> (N, K, outputs).

    The gradient of x is whole, because the gradients of its halo are added; those of weight and bias are of this tile's
    outputs. `axes` says how the tile is convolved in place; if it is None, a padded copy of the tile is convolved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tiles: Tiles,
        here: TileView,
        geometry: Geometry,
        axes: tuple[InPlace, InPlace] | None,
        outputs: Pair,
        groups: int,
    ) -> Tensor:
        ctx.tiles, ctx.here, ctx.axes, ctx.has_bias = tiles, here, axes, bias is not None
        ctx.options = geometry.stride, geometry.dilation, groups
        if axes is None:
            x = assembled(tiles, x, here)
            ctx.save_for_backward(x, weight)
            return _forward(x, weight, bias, (0, 0), ctx.options)
        ctx.bands = bands = _halo_bands(geometry, here, axes, outputs)
        pieces = fetch(tiles, x, here)
        if not tiles.overlap:
            pieces()
        y = _forward(_skipped(x, axes), weight, bias, (axes[0].padding, axes[1].padding), ctx.options)
        halos = _collect(bands, pieces(), x)
        for band, halo in zip(bands, halos, strict=True):
            part_of(y, band.outputs).add_(_forward(halo, weight, None, band.padding, ctx.options))
        ctx.save_for_backward(x, weight, *halos)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, *halos = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *others = ctx.needs_input_grad
        wanted = (wants_x, wants_weight, wants_bias and ctx.has_bias)
        if ctx.axes is None:
            g_x, g_weight, g_bias = _backward(gradient, x, weight, (0, 0), ctx.options, wanted)
            if wants_x:
                g_x = taken_apart(ctx.tiles, g_x, ctx.here)
        else:
            g_x, g_weight, g_bias = _backward_in_place(ctx, gradient, x, weight, halos, wanted)
        return g_x, g_weight, g_bias, *(None for _ in others)


def _backward_in_place(
    ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, halos: list[Tensor], wanted: tuple[bool, bool, bool]
) -> tuple[Any, Any, Any]:
    """Return the gradients of (x, weight, bias); those of the halo travel while the tile's own are computed."""
    here, (wants_x, wants_weight, _) = ctx.here, wanted
    weight_gradients, halo_gradients = [], []
    for band, halo in zip(ctx.bands, halos, strict=True):
        g = part_of(gradient, band.outputs)
        g_halo, g_weight, _ = _backward(g, halo, weight, band.padding, ctx.options, (wants_x, wants_weight, False))
        weight_gradients.append(g_weight)
        halo_gradients.append(g_halo)
    if wants_x:
        pieces = send_home(ctx.tiles, _take_apart(ctx.bands, halo_gradients, here), here, x)
        if not ctx.tiles.overlap:
            pieces()
    padding = ctx.axes[0].padding, ctx.axes[1].padding
    g_x, g_weight, g_bias = _backward(gradient, _skipped(x, ctx.axes), weight, padding, ctx.options, wanted)
    for extra in weight_gradients if wants_weight else ():
        g_weight.add_(extra)
    if wants_x:
        skips = [axis.skip for axis in ctx.axes]
        if any(skips):
            g_x = F.pad(g_x, (skips[1], 0, skips[0], 0))
        g_x = add_home(g_x, pieces(), here)
    return g_x, g_weight, g_bias


Options = tuple[Pair, Pair, int]
"""The stride, the dilation and the number of groups."""


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, options: Options) -> Tensor:
    stride, dilation, groups = options
    y: Tensor = torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)
    return y


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: Pair, options: Options, wanted: Sequence[bool]
) -> tuple[Any, Any, Any]:
    """Return the gradients of (x, weight, bias), each None where it is not wanted."""
    stride, dilation, groups = options
    g_x = g_weight = g_bias = None
    if wanted[0] or wanted[2]:
        bias_sizes = [weight.shape[0]] if wanted[2] else None
        g_x, _, g_bias = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            bias_sizes,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (wanted[0], False, wanted[2]),
        )
    if wanted[1]:
        g_weight = weight_gradient(gradient, x, weight, stride, padding, dilation, groups)
    return g_x, g_weight, g_bias


def _skipped(x: Tensor, axes: tuple[InPlace, InPlace]) -> Tensor:
    return x[:, :, axes[0].skip :, axes[1].skip :]


def _collect(bands: Sequence[_HaloBand], pieces: Sequence[tuple[Rect, Tensor]], like: Tensor) -> list[Tensor]:
    """Return the bands with their halo pixels, zero outside the image, padded so that their windows are whole."""
    halos = []
    for band in bands:
        inside = [(rect, piece) for rect, piece in pieces if _contains(band.rect, rect)]
        if len(inside) == 1 and inside[0][0] == band.rect:
            halo = inside[0][1]
        else:
            events, channels = like.shape[:2]
            halo = like.new_zeros((events, *band.rect.shape, channels)).permute(0, 3, 1, 2)
            for rect, piece in inside:
                part_of(halo, rect, band.rect).copy_(piece)
        halos.append(F.pad(halo[:, :, band.skip :], band.pad))
    return halos


def _take_apart(bands: Sequence[_HaloBand], gradients: Sequence[Tensor], here: TileView) -> list[Tensor]:
    """Return the gradient of each incoming piece; this is the adjoint of `_collect`."""
    whole = []
    for band, gradient in zip(bands, gradients, strict=True):
        left, right, top, bottom = (-pad for pad in band.pad)
        whole.append((band.rect, F.pad(gradient, (left, right, top + band.skip, bottom))))
    parts = []
    for _, rect in here.incoming:
        ((origin, gradient),) = [band for band in whole if _contains(band[0], rect)]
        parts.append(part_of(gradient, rect, origin))
    return parts


def _contains(outer: Rect, inner: Rect) -> bool:
    return outer.common(inner) == inner
