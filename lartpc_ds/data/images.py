"""Dense images on the fly: any tile of an event, without making the rest of it.

One image size serves all planes, because a network takes one size. A plane with fewer wires is centred in the image, as
in SBND's own files, whose collection plane is at wires 191 to 1856 of 2048. A plane with fewer ticks starts at tick 0,
because ticks are times and must agree between planes. Rejected: stretching U and V to Y's wires, which would bend
angles.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Event, Plane
from lartpc_ds.data.isolated import REACH, isolated
from lartpc_ds.errors import UserError

__all__ = ["Pixels", "Preprocessing", "densify", "isolated_pixels", "lit_pixels"]

Pixels = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Lit pixels of one plane: ascending C-order flat indices into an image or a tile, and their non-zero values."""

_Tile = tuple[tuple[int, int], tuple[int, int]]
"""The (rows, cols) of a tile, each [start, stop)."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How the network's pixels are made from the file's.

    `image_shape` is (wires, ticks) before downsampling. `downsample` pixels of each axis are summed to one, and a last
    partial block is kept. Then values below `threshold` become 0 (a threshold of 0 switches this off). A pixel that is
    not 0 now is lit. Lit pixels with fewer than `isolated` lit ones in the 5 x 5 window around them, themselves
    included, become 0, all at once. At last values above `saturate` become `saturate`.
    """

    image_shape: tuple[int, int]
    downsample: tuple[int, int] = (1, 1)
    threshold: float = 0.0
    isolated: int = 0
    saturate: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The (rows, cols) of the image that the network sees."""
        rows, cols = (-(-size // block) for size, block in zip(self.image_shape, self.downsample, strict=True))
        return rows, cols


def densify(
    event: Event, pre: Preprocessing, rows: tuple[int, int] | None = None, cols: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """The tile [rows) x [cols) of the preprocessed image, by default all of it: (planes, rows, cols).

    The tile equals the same slice of the whole image bit for bit. Raises UserError if a plane is larger than the image.
    """
    (row0, row1), (col0, col1) = rows or (0, pre.shape[0]), cols or (0, pre.shape[1])
    pixels = lit_pixels(event, pre, rows, cols)
    image = np.zeros((len(pixels), row1 - row0, col1 - col0), np.float32)
    for (flat, values), target in zip(pixels, image, strict=True):
        target.reshape(-1)[flat] = values
    return image


def lit_pixels(
    event: Event, pre: Preprocessing, rows: tuple[int, int] | None = None, cols: tuple[int, int] | None = None
) -> list[Pixels]:
    """The lit pixels of each plane in the tile [rows) x [cols), by default the whole image, with indices into the tile.

    They are the non-zero pixels of what `densify` makes, without a dense image. Raises UserError if a plane is larger
    than the image.
    """
    tile = rows or (0, pre.shape[0]), cols or (0, pre.shape[1])
    for (start, stop), size in zip(tile, pre.shape, strict=True):
        assert 0 <= start <= stop <= size, f"tile {tile} of {pre.shape}"
    pixels = []
    for plane in event.planes:
        _check_fits(event, plane, pre)
        flat, values = _kept(plane, pre, tile) if pre.isolated else _above_threshold(plane, pre, tile)
        pixels.append((flat, _saturated(values, pre)))
    return pixels


def isolated_pixels(plane: Plane, pre: Preprocessing) -> tuple[Pixels, NDArray[np.bool_]]:
    """The pixels that a plane lights in the whole image, and which of them `pre.isolated` drops.

    The plane must fit the image.
    """
    flat, values = _above_threshold(plane, pre, ((0, pre.shape[0]), (0, pre.shape[1])))
    dropped = isolated(flat, pre.shape[1], pre.isolated) if pre.isolated else np.zeros(len(flat), np.bool_)
    return (flat, _saturated(values, pre)), dropped


def _kept(plane: Plane, pre: Preprocessing, tile: _Tile) -> Pixels:
    """The pixels of the tile that are lit and not isolated; those that a neighbouring tile owns count as neighbours."""
    (row0, row1), (col0, col1) = tile
    rows, cols = (
        (max(start - REACH, 0), min(stop + REACH, size)) for (start, stop), size in zip(tile, pre.shape, strict=True)
    )
    num_cols = cols[1] - cols[0]
    flat, values = _above_threshold(plane, pre, (rows, cols))
    keep = ~isolated(flat, num_cols, pre.isolated)
    row, col = np.divmod(flat[keep], num_cols)
    row, col, values = row + rows[0], col + cols[0], values[keep]
    inside = (row >= row0) & (row < row1) & (col >= col0) & (col < col1)
    return (row[inside] - row0) * (col1 - col0) + (col[inside] - col0), values[inside]


def _above_threshold(plane: Plane, pre: Preprocessing, tile: _Tile) -> Pixels:
    """The pixels of the tile that are not 0 after downsampling and the threshold."""
    (row0, row1), (col0, col1) = tile
    row, col, values = _pixels_in_rows(plane, pre, row0, row1)
    inside = (col >= col0) & (col < col1)
    flat = (row[inside] - row0) * (col1 - col0) + (col[inside] - col0)
    flat, values = _summed(flat, values[inside], pre)
    lit = values >= pre.threshold if pre.threshold > 0 else values != 0
    return flat[lit], values[lit]


def _check_fits(event: Event, plane: Plane, pre: Preprocessing) -> None:
    if plane.shape[0] > pre.image_shape[0] or plane.shape[1] > pre.image_shape[1]:
        size, image = (" x ".join(map(str, shape)) for shape in (plane.shape, pre.image_shape))
        raise UserError(
            f"{event.id.file}: event {event.id.index}, plane {plane.plane} has {size} wires x ticks, more than the "
            f"image of {image}; set data.detector to the detector that wrote the file"
        )


def _pixels_in_rows(
    plane: Plane, pre: Preprocessing, row0: int, row1: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The row and column (after downsampling) and the value of the plane's pixels in rows [row0, row1)."""
    wires, ticks = plane.shape
    offset = (pre.image_shape[0] - wires) // 2
    # ids ascend, so the wires of the tile are one slice of them
    wire0, wire1 = (min(max(row * pre.downsample[0] - offset, 0), wires) for row in (row0, row1))
    start, stop = np.searchsorted(plane.ids, (wire0 * ticks, wire1 * ticks))
    wire, tick = np.divmod(plane.ids[start:stop], ticks)
    return (wire + offset) // pre.downsample[0], tick // pre.downsample[1], plane.values[start:stop]


def _summed(flat: NDArray[np.int64], values: NDArray[np.float32], pre: Preprocessing) -> Pixels:
    """Values with the same flat index added up in the order of the file, so that a tile and the whole agree exactly."""
    if pre.downsample == (1, 1) or len(flat) == 0:
        return flat, values
    order = np.argsort(flat, kind="stable")
    flat = flat[order]
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    sums = np.add.reduceat(values[order].astype(np.float64), starts)
    return flat[starts], sums.astype(np.float32)


def _saturated(values: NDArray[np.float32], pre: Preprocessing) -> NDArray[np.float32]:
    return values if pre.saturate is None else np.minimum(values, np.float32(pre.saturate))
