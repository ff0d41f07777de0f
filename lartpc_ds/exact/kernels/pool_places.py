"""A max pool keeps one byte per output, the place of the maximum in its window, and nothing else.

torch keeps the pool's whole input and an eight-byte index per output: at a stem, twice the largest map of the network.
Its kernels do the work here too, on bands of output rows whose indices fit a cache, so that of equal values the same
one is chosen; an index is a byte while it is kept. Rejected: a pool of our own, which would have to make torch's choice
among equal values.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.pieces import in_pieces, rows_at_once
from lartpc_ds.exact.grid.windows import Window

__all__ = ["Pool", "choose", "give_back"]

Pair = tuple[int, int]

_INDEX_BYTES = 1 << 22
"""The bytes of torch's indices of one band."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Windows of at most 256 pixels; `padding` is torch's and is at most half a window."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, slots=True)
class _Band:
    """Output rows [start, stop) and the rows that they read, of which `above` and `below` lie outside the image."""

    start: int
    stop: int
    first: int
    last: int
    above: int
    below: int


def _bands(pool: Pool, x_rows: int, places: Tensor) -> Iterator[_Band]:
    outputs, window = places.shape[1:3], Window(pool.kernel[0], pool.stride[0], pool.padding[0])
    rows = rows_at_once(places, 8 * places[0, 0].numel(), _INDEX_BYTES)
    with in_pieces():
        for start in range(0, outputs[0], rows):
            stop = min(start + rows, outputs[0])
            first, last = window.need((start, stop))
            yield _Band(start, stop, max(first, 0), min(last, x_rows), max(-first, 0), max(last - x_rows, 0))


def _columns(pool: Pool, width: int) -> tuple[int, int]:
    """Return (pixels to pad each side before, padding to leave to torch).

    A window that is wider than the map is padded before, because its places could not be told apart otherwise.
    """
    return (pool.padding[1], 0) if width < pool.kernel[1] else (0, pool.padding[1])


def _origins(pool: Pool, band: _Band, cols: int, width: int, left: int, device: torch.device) -> Tensor:
    """Return the index of each window's first pixel in the band, (1, rows, cols, 1)."""
    rows = torch.arange(band.stop - band.start, device=device) * (pool.stride[0] * width)
    columns = torch.arange(cols, device=device) * pool.stride[1] - left
    return (rows[:, None] + columns)[None, :, :, None]


def choose(pool: Pool, x: Tensor, outputs: Pair) -> tuple[Tensor, Tensor]:
    """(N, C, h, w) -> maxima (N, C, *outputs), and their places (N, *outputs, C) as bytes.

    A place is row * kernel + column.
    """
    events, channels = x.shape[:2]
    y = torch.empty(
        (events, channels, *outputs), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )  # y must not be a view, because a model could not change that in place
    places = torch.empty((events, *outputs, channels), dtype=torch.uint8, device=x.device)
    added, padding = _columns(pool, x.shape[3])
    width = x.shape[3] + 2 * added
    for band in _bands(pool, x.shape[2], places):
        rows = x[:, :, band.first : band.last]
        if added or band.above or band.below:
            rows = F.pad(rows, (added, added, band.above, band.below), value=-torch.inf)
        best, index = torch.ops.aten.max_pool2d_with_indices(
            rows, pool.kernel, pool.stride, (0, padding), (1, 1), False
        )
        y[:, :, band.start : band.stop] = best[..., : outputs[1]]
        origins = _origins(pool, band, outputs[1], width, padding, x.device)
        place = index[..., : outputs[1]].permute(0, 2, 3, 1) - origins
        row = sum((place >= line * width).to(torch.uint8) for line in range(1, pool.kernel[0]))
        places[:, band.start : band.stop] = place.to(torch.uint8) - row * ((width - pool.kernel[1]) % 256)
    return y, places


def give_back(pool: Pool, gradient: Tensor, places: Tensor, size: Pair) -> Tensor:
    """(N, C, outputs) -> (N, C, *size): return the gradient of x; this is the adjoint of `choose`."""
    events, channels = gradient.shape[:2]
    outputs = gradient.shape[2], gradient.shape[3]
    g_x = gradient.new_zeros((events, *size, channels)).permute(0, 3, 1, 2)
    added, padding = _columns(pool, size[1])
    width = size[1] + 2 * added
    for band in _bands(pool, size[0], places):
        place = places[:, band.start : band.stop]
        row = torch.zeros_like(place)
        for line in range(1, pool.kernel[0]):
            row += place >= line * pool.kernel[1]
        index = row.to(torch.int64).mul_(width - pool.kernel[1]).add_(place)
        index += _origins(pool, band, outputs[1], width, padding, gradient.device)
        height = band.last - band.first + band.above + band.below
        # torch reads only the shape of this map
        like = gradient.new_empty((events, height, width, channels)).permute(0, 3, 1, 2)
        part = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient[:, :, band.start : band.stop],
            like,
            pool.kernel,
            pool.stride,
            (0, padding),
            (1, 1),
            False,
            index.permute(0, 3, 1, 2),
        )
        inside = part[:, :, band.above : height - band.below, added : width - added]
        g_x[:, :, band.first : band.last] += inside
    return g_x
