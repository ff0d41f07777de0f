"""Which patches of a map are equal whatever the weights are; it is decided on integers, before anything is computed.

A map is cut into patches, rectangles of pixels that lie side by side. Pixels that no charge has reached are dark. A
dark pixel has the value that an empty image would give at its place, and that depends on its row and its column only
through what the windows of the layers so far have read there: pixels inside the image, or padding. So each axis has a
*type* for every row (column). Two rows are of one type if all windows have read the same from them, and dark pixels of
the same row type and column type are equal in every channel.

Pixels that charge has reached are lit. An output is lit if its window reads a lit pixel, which is followed exactly,
stride and dilation included. A patch with a lit pixel is held by itself. Dark patches of one event with the same types
of rows and columns are equal, so they are held once, with their count. A patch at the lower or right edge may stick
out of the map. Every layer takes padding in place of what it holds there, and sums leave it out; it repeats the last
row or column of the map, so that a function is not asked for values (log(0), say) that no pixel of the map has.

Rejected: comparing values, which costs a pass over the map that is to be avoided, and a fixed number of kinds of dark
patches at the edges, which is too few for deep networks and too many for shallow ones.
"""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.lit_shares import any_in_squares
from lartpc_ds.exact.grid.windows import Tap, Transposed, Window

__all__ = ["Axis", "Patches"]

Bits = NDArray[np.bool_]
Integers = NDArray[np.int64]

_OUTSIDE = -1
"""The type of a row that a window reads outside the map."""


def _numbered(rows: NDArray[Any]) -> Integers:
    """(n, k) -> (n): a number for each distinct row."""
    numbers: dict[bytes, int] = {}  # np.unique sorts, and takes a hundred times as long for long rows
    return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows], np.int64)


class Axis:
    """The rows (or columns) of a map: how many there are, how they lie in patches, and the type of each."""

    def __init__(self, size: int, patch: int, types: Integers | None = None) -> None:
        self.size, self.patch = size, patch
        self.types: Integers = np.zeros(size, np.int64) if types is None else types
        self._known: dict[Hashable, Axis] = {}  # plans of the same layer need the same axis for every event

    @cached_property
    def starts(self) -> Integers:
        """The first row of each patch."""
        return np.arange(0, self.size, self.patch)

    @cached_property
    def inside(self) -> Integers:
        """The number of rows of each patch that are inside the map."""
        return np.minimum(self.size - self.starts, self.patch)

    @cached_property
    def kinds(self) -> Integers:
        """A number for each patch; patches with the same number have the same types of rows."""
        padded = np.full(len(self.starts) * self.patch, _OUTSIDE, np.int64)
        padded[: self.size] = self.types
        return _numbered(padded.reshape(-1, self.patch))

    def through(self, operator: Window | Transposed, outputs: int) -> "Axis":
        """Return the axis of an operator's output; its stride must divide the patches."""
        key = operator, outputs
        if key not in self._known:
            patch = operator.patch_after(self.patch)
            assert patch, (operator, self.patch)
            read = np.full((outputs, operator.kernel), _OUTSIDE, np.int64)
            for tap, (made, taken) in enumerate(operator.taps(outputs, self.size)):
                read[made, tap] = self.types[taken]
            self._known[key] = Axis(outputs, patch, _numbered(read))
        return self._known[key]

    def joined(self, other: "Axis") -> "Axis":
        """Return the axis of a map that is computed of two maps, pixel by pixel."""
        assert (self.size, self.patch) == (other.size, other.patch)
        key = id(other)
        if key not in self._known:
            types = _numbered(np.stack([self.types, other.types], 1))
            same = [axis for axis in (self, other) if types.max(initial=0) == axis.types.max(initial=0)]
            self._known[key] = same[0] if same else Axis(self.size, self.patch, types)
            self._known[key, "held"] = other  # so that no other axis gets its id
        return self._known[key]


class Patches:
    """The distinct patches of a map of some events, and where each of them lies.

    Patches that stand for several places, or that stick out of the map, are *special* and come first; each plain patch
    after them stands for one place and is inside the map. Both are in the order of their events.
    """

    def __init__(self, lit: Bits, rows: Axis, cols: Axis) -> None:
        """Find the distinct patches of maps whose pixels `lit` (events, rows, columns) charge has reached."""
        assert lit.shape[1:] == (rows.size, cols.size)
        self.lit, self.rows, self.cols = lit, rows, cols
        own = any_in_squares(lit, rows.patch, cols.patch)
        self.grid = own.shape
        dark = np.flatnonzero(~own)
        kinds = (np.arange(len(lit))[:, None, None] * len(rows.starts) + rows.kinds[:, None]) * len(cols.starts)
        _, first, same, counts = np.unique(
            (kinds + cols.kinds).reshape(-1)[dark], return_index=True, return_inverse=True, return_counts=True
        )
        sticks_out = ((rows.inside < rows.patch)[:, None] | (cols.inside < cols.patch)) & own
        edge, plain = np.flatnonzero(sticks_out), np.flatnonzero(own & ~sticks_out)
        special = np.concatenate([dark[first], edge])
        order = np.argsort(special, kind="stable")
        self.special = len(special)
        """The number of special patches."""
        self.counts: Integers = np.concatenate([counts, np.ones(len(edge), np.int64)])[order]
        """The number of places of each special patch."""
        places = np.concatenate([special[order], plain])
        self.event, self.row, self.col = (axis.astype(np.int64) for axis in np.unravel_index(places, self.grid))
        self.index: Integers = np.empty(own.size, np.int64)
        """The number of the patch at each place, (events, patch rows, patch columns)."""
        number = np.empty(len(special), np.int64)
        number[order] = np.arange(len(special))
        self.index[dark], self.index[edge] = number[: len(first)][same], number[len(first) :]
        self.index[plain] = np.arange(len(special), len(places))
        self.index = self.index.reshape(self.grid)

    def __len__(self) -> int:
        """The number of distinct patches."""
        return len(self.event)

    @property
    def events(self) -> int:
        """The number of events."""
        return len(self.lit)

    @property
    def shape(self) -> tuple[int, int]:
        """The rows and columns of a patch."""
        return self.rows.patch, self.cols.patch

    @property
    def size(self) -> tuple[int, int]:
        """The rows and columns of the map."""
        return self.rows.size, self.cols.size

    @cached_property
    def sticking_out(self) -> list[tuple[int, int, Integers]]:
        """The dimension, the number of its rows (columns) inside the map, and the patches that stick out there."""
        return [
            (dim, int(axis.inside[-1]), np.flatnonzero(at == len(axis.starts) - 1))
            for dim, axis, at in ((2, self.rows, self.row), (3, self.cols, self.col))
            if axis.inside[-1] < axis.patch
        ]

    def bounds_of_events(self) -> tuple[Integers, Integers]:
        """Return where the patches of each event begin and end: among the special ones, and among all for plain ones.

        Each is (events + 1).
        """
        events = np.arange(self.events + 1)
        special = np.searchsorted(self.event[: self.special], events)
        return special, self.special + np.searchsorted(self.event[self.special :], events)

    def pixels(self) -> NDArray[np.float32]:
        """Return for how many pixels of the map each pixel of the special patches stands, (special, rows, columns)."""
        rows, cols = (
            np.arange(axis.patch) < axis.inside[at[: self.special]][:, None]
            for axis, at in ((self.rows, self.row), (self.cols, self.col))
        )
        pixels: NDArray[np.float32] = (self.counts[:, None, None] * (rows[:, :, None] & cols[:, None])).astype(
            np.float32
        )
        return pixels

    def through(self, rows: Window | Transposed, cols: Window | Transposed, outputs: tuple[int, int]) -> "Patches":
        """Return the patches of what an operator with these windows makes of the map, of the size `outputs`."""
        lit = _reached(self.lit, 1, rows.taps(outputs[0], self.rows.size), outputs[0])
        lit = _reached(lit, 2, cols.taps(outputs[1], self.cols.size), outputs[1])
        return Patches(lit, self.rows.through(rows, outputs[0]), self.cols.through(cols, outputs[1]))

    def joined(self, other: "Patches") -> "Patches":
        """Return the patches of a map that is computed of this and another map, pixel by pixel."""
        if other is self:
            return self
        rows, cols = self.rows.joined(other.rows), self.cols.joined(other.cols)
        lit = self.lit | other.lit
        for one in (self, other):
            if (one.rows, one.cols) == (rows, cols) and np.array_equal(one.lit, lit):
                return one
        return Patches(lit, rows, cols)


def _reached(lit: Bits, axis: int, taps: Sequence[Tap], outputs: int) -> Bits:
    """Return the outputs along one axis whose window reads a lit pixel."""
    shape = list(lit.shape)
    shape[axis] = outputs
    reached = np.zeros(shape, np.bool_)
    before = (slice(None),) * axis
    for made, taken in taps:
        reached[(*before, made)] |= lit[(*before, taken)]
    return reached
