"""How much of an image's patches charge reaches, from the places of its lit pixels and a few integers.

A network that computes only what is lit (`memory.lit_block`) cuts every map into patches, and a lit pixel of the image
lights all patches that its reach touches. The survey counts these for every event before a run, and a rank counts them
for every micro-batch, so both use this module. A reach is followed from cells of a few pixels, which can add a patch
where a track ends right beside it. Rejected: a bitmap of the image, which has 10^8 pixels where an event has 10^4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import EventId

__all__ = ["AUTO_PIXELS", "Cells", "Cut", "Reach", "any_in_squares", "describe_shares"]

AUTO_PIXELS = 32
"""The side of a patch with `memory.lit_block = "auto"`."""

_CELL = 4
"""The side of a cell in pixels; smaller ones change the shares by little."""

Integers = NDArray[np.int64]


class Reach(NamedTuple):
    """How many rows of the image further up and down, and columns to the left and right, a lit pixel lights a map."""

    up: int
    down: int
    left: int
    right: int


class Cells(NamedTuple):
    """The cells of some images that have a lit pixel: the number of images, and the image and first pixel of each."""

    images: int
    image: Integers
    row: Integers
    col: Integers

    @classmethod
    def of_pixels(cls, rows: Integers, cols: Integers) -> Self:
        """The cells of one image with lit pixels at these rows and columns, which may occur more than once."""
        rows, cols = rows // _CELL, cols // _CELL
        width = int(cols.max(initial=0)) + 1
        row, col = np.divmod(np.unique(rows * width + cols), width)
        return cls(1, np.zeros(len(row), np.int64), row * _CELL, col * _CELL)

    @classmethod
    def of_bits(cls, lit: NDArray[np.bool_]) -> Self:
        """The cells of images (images, rows, columns) whose lit pixels are true."""
        image, row, col = np.nonzero(any_in_squares(lit, _CELL, _CELL))
        return cls(len(lit), image, row * _CELL, col * _CELL)


@dataclass(frozen=True, slots=True)
class Cut:
    """How images and the maps of a network are cut into patches, and how far a lit pixel lights each map."""

    image: tuple[int, int]
    """The rows and columns of the image."""
    patch: tuple[int, int]
    """The rows and columns of a patch, in pixels of the image."""
    reaches: tuple[Reach, ...] = ()

    def shares(self, cells: Cells) -> list[float]:
        """The share of patches that are lit, at the image and then at each map."""
        return [self._share(cells, reach) for reach in (Reach(0, 0, 0, 0), *self.reaches)]

    def _share(self, cells: Cells, reach: Reach) -> float:
        height, width = self.patch
        down, across = (-(-size // side) for size, side in zip(self.image, self.patch, strict=True))
        top, left = np.maximum(cells.row - reach.up, 0) // height, np.maximum(cells.col - reach.left, 0) // width
        bottom = np.minimum((cells.row + _CELL - 1 + reach.down) // height, down - 1) + 1
        right = np.minimum((cells.col + _CELL - 1 + reach.right) // width, across - 1) + 1
        corners = np.zeros((cells.images, down + 1, across + 1), np.int64)
        for at, sign in (((top, left), 1), ((bottom, left), -1), ((top, right), -1), ((bottom, right), 1)):
            np.add.at(corners, (cells.image, *at), sign)
        return float((corners.cumsum(1).cumsum(2)[:, :-1, :-1] > 0).mean())


def any_in_squares(lit: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """(events, rows, columns) -> whether each rectangle of so many rows and columns has a lit pixel.

    The last ones of a row or column may be smaller.
    """
    for axis, side in ((1, height), (2, width)):
        shape = list(lit.shape)
        shape[axis] = -(-lit.shape[axis] // side)
        found = np.zeros(shape, np.bool_)
        before = (slice(None),) * axis
        for offset in range(min(side, lit.shape[axis])):  # numpy's reduceat takes ten times as long
            part = lit[(*before, slice(offset, None, side))]
            found[(*before, slice(0, part.shape[axis]))] |= part
        lit = found
    return lit


def describe_shares(
    shares: NDArray[np.float64], maps: Sequence[str], patch: tuple[int, int], ids: Sequence[EventId]
) -> list[str]:
    """Sentences for the user about the lit `shares` (events, 1 + maps) of the events `ids`, and about the brightest."""
    if len(shares) == 0:
        return []
    names = ("image", *maps)
    shown = sorted({0, 1, len(names) // 2, len(names) - 1} & set(range(len(names))))
    parts = []
    for number in shown:
        middle, most, largest = map(_percent, np.quantile(shares[:, number], (0.5, 0.9, 1)))
        parts.append(f"{names[number]} {middle} ({most}, {largest})")
    brightest = int(np.argmax(shares.sum(axis=1)))
    who = ids[brightest]
    return [
        f"of the patches of {patch[0]} x {patch[1]} pixels, charge lights in the median event (in 90 % of the events, "
        f"and in any, at most): {', '.join(parts)}",
        f"the brightest event is {who.file}: event {who.index}, which lights {_percent(shares[brightest, 0])} of the "
        "image's patches",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
