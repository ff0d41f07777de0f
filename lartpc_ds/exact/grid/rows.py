"""`Rows` says which rows of a map a strip has, and is computed on integers alone.

A strip of the image gives a layer fewer rows than the whole image does: those whose windows lie inside it. Only at the
true border of a map may a window hang over, into the operator's own padding. So each map of a strip has a range of rows
[start, stop) of the whole map, and an operator says how it maps the range.

`low` and `high` hold that map for many ranges at once: the first entry of each is the range of the tensor at hand, and
the others are what-ifs. Planning runs the network once on the whole image with every row as a what-if start and stop,
and then reads off which rows each strip needs. A real run has one entry. Both use the same rules. Rejected: composing
receptive fields as (kernel, stride, offset), which says nothing about the border, where strips have to be exact, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.exact.grid.windows import Range, Window

__all__ = ["Rows"]

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a tensor: its dimension `dim` has [start, stop) of the `size` rows of the whole map."""

    dim: int
    size: int
    low: Indices
    high: Indices

    @classmethod
    def every(cls, dim: int, size: int) -> Self:
        """Return the rows of a whole map; its what-ifs low[a] start at row a, and high[b] stop at row size - b."""
        return cls(dim, size, np.arange(size + 1), np.arange(size, -1, -1))

    @classmethod
    def of(cls, dim: int, size: int, rows: Range) -> Self:
        """Return the rows of a strip without what-ifs."""
        return cls(dim, size, np.array(rows[:1]), np.array(rows[1:]))

    @property
    def start(self) -> int:
        """The first row of the tensor at hand."""
        return int(self.low[0])

    @property
    def stop(self) -> int:
        """The row after the last row of the tensor at hand."""
        return int(self.high[0])

    @property
    def count(self) -> int:
        """The number of rows of the tensor at hand; the strip is empty if it is 0 or less."""
        return self.stop - self.start

    def through(self, window: Window, outputs: int) -> "Rows":
        """Return the rows that a window makes of these rows; the whole result has `outputs` rows."""
        low = np.where(self.low == 0, 0, -((-self.low - window.padding) // window.stride))
        whole = (self.high + window.padding - window.reach) // window.stride + 1
        high = np.where(self.high == self.size, outputs, whole)
        return Rows(self.dim, outputs, np.clip(low, 0, outputs), np.clip(high, 0, outputs))

    def padded(self, before: int, after: int) -> "Rows":
        """Return the rows of this map with rows of a constant around the whole map."""
        low = np.where(self.low == 0, 0, self.low + before)
        high = np.where(self.high == self.size, self.size + before + after, self.high + before)
        return Rows(self.dim, self.size + before + after, low, high)

    def common(self, others: Sequence["Rows"]) -> "Rows":
        """Return the rows that this map and the others, all of one size, have in common."""
        low = np.maximum.reduce([self.low, *(other.low for other in others)])
        high = np.minimum.reduce([self.high, *(other.high for other in others)])
        return Rows(self.dim, self.size, low, high)

    def moved(self, dim: int) -> "Rows":
        """Return the same rows in another dimension."""
        return replace(self, dim=dim)

    def needed(self, out: Range) -> Range:
        """Return the fewest rows of the image that give the rows `out` of this map.

        They are read off what-ifs that `every` made. There is at least one row, even where `out` reads padding only.
        """
        rows = len(self.low) - 1
        first = min(int(np.flatnonzero(self.low <= out[0])[-1]), rows - 1)
        last = rows - int(np.flatnonzero(self.high >= out[1])[-1])
        return first, max(last, first + 1)
