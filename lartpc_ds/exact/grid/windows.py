"""Halos are computed on integers alone: which inputs a tile of outputs needs, and who owns them.

Ownership is set on outputs and halos are derived, never the other way round. An operator maps the *boundaries* of its
input to those of its output, so that every output row has exactly one owner whatever the stride. Then the rows that a
rank needs follow from the rows that it owns. They may stick out on either side by different amounts, reach past the
next tile, or fall short of the rank's own rows. Rejected: a halo of k // 2 on both sides, which is right only where
every tile starts at a multiple of the stride (the sources are DistDL's derivation and the mistakes of its successors).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lartpc_ds.layout import Bounds

__all__ = [
    "NO_TAP",
    "AxisOperator",
    "AxisPlan",
    "Piece",
    "Range",
    "Rect",
    "Same",
    "Shift",
    "Tap",
    "TileView",
    "Transposed",
    "Window",
    "intersection",
    "plan_axis",
    "tile_of",
]

Range = tuple[int, int]
"""The pixels [start, stop) of one axis of the whole map."""

Tap = tuple[slice, slice]
"""One pixel of a window, for all outputs that have it inside the map: these outputs, and the inputs that they read."""

NO_TAP: Tap = (slice(0, 0), slice(0, 0))


class AxisOperator(Protocol):
    """One axis of an operator: how it maps boundaries and what its outputs need."""

    def out_bounds(self, bounds: Bounds, size: int) -> Bounds:
        """Return the boundaries of the output, of `size` pixels; a tile is empty if two of them are equal."""

    def need(self, out: Range) -> Range:
        """Return the input pixels that the outputs `out` (not empty) need; they may stick out of the map."""


@dataclass(frozen=True, slots=True)
class Same:
    """Every pixel needs the same pixel, so this moves a map from one cut to another."""

    target: Bounds

    def out_bounds(self, bounds: Bounds, size: int) -> Bounds:
        """Return the target."""
        assert self.target[-1] == bounds[-1] == size, (self.target, bounds, size)
        return self.target

    def need(self, out: Range) -> Range:
        """Return the same pixels."""
        return out


@dataclass(frozen=True, slots=True)
class Shift:
    """Padding: output o is input o - before; a negative `before` crops."""

    before: int

    def out_bounds(self, bounds: Bounds, size: int) -> Bounds:
        """Map B to B + before, within [0, size]."""
        return _outer(bounds, size, [min(max(b + self.before, 0), size) for b in bounds])

    def need(self, out: Range) -> Range:
        """Return the outputs' own range, moved."""
        return out[0] - self.before, out[1] - self.before


@dataclass(frozen=True, slots=True)
class Window:
    """Convolution and pooling: output o reads o * stride - padding + dilation * (0, ..., kernel - 1)."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def reach(self) -> int:
        """The number of pixels from the first to the last that one output reads, both included."""
        return self.dilation * (self.kernel - 1) + 1

    def out_bounds(self, bounds: Bounds, size: int) -> Bounds:
        """Map B to min(ceil(B / stride), size)."""
        return _outer(bounds, size, [min(-(-b // self.stride), size) for b in bounds])

    def need(self, out: Range) -> Range:
        """Return the range from the first pixel of the first window to the last pixel of the last window."""
        first = out[0] * self.stride - self.padding
        return first, (out[1] - 1) * self.stride - self.padding + self.reach

    def taps(self, outputs: int, size: int) -> list[Tap]:
        """Return, for each pixel of the window, the outputs that have it in the map, and the inputs that they read."""
        taps = []
        for offset in (self.dilation * tap - self.padding for tap in range(self.kernel)):
            first = max(0, -(offset // self.stride))
            last = min(outputs, (size - 1 - offset) // self.stride + 1)
            read = slice(first * self.stride + offset, (last - 1) * self.stride + offset + 1, self.stride)
            taps.append((slice(first, last), read) if first < last else NO_TAP)
        return taps

    def patch_after(self, patch: int) -> int | None:
        """Return the side of the patches of the output, or None if the stride does not divide the map's patches."""
        return None if patch % self.stride else patch // self.stride

    def outputs(self, size: int) -> int:
        """Return how many windows lie within a map of `size` and its padding."""
        return (size + 2 * self.padding - self.reach) // self.stride + 1

    def misses(self, outputs: int, size: int) -> bool:
        """Return whether some output reads padding only, and no pixel of a map of `size`.

        That can happen where a window has gaps between its pixels.
        """
        starts = (out * self.stride - self.padding for out in range(outputs))
        return self.dilation > 1 and any(
            not any(0 <= start + self.dilation * tap < size for tap in range(self.kernel)) for start in starts
        )


@dataclass(frozen=True, slots=True)
class Transposed:
    """Transposed convolution: input i adds to outputs i * stride - padding + dilation * (0, ..., kernel - 1)."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def out_bounds(self, bounds: Bounds, size: int) -> Bounds:
        """Map B to min(B * stride, size)."""
        return _outer(bounds, size, [min(b * self.stride, size) for b in bounds])

    def need(self, out: Range) -> Range:
        """Return the inputs whose window meets the outputs.

        Where no window does (kernel < stride), return the nearest input, which gives the shape.
        """
        reach = self.dilation * (self.kernel - 1)
        first = -(-(out[0] + self.padding - reach) // self.stride)
        last = (out[1] - 1 + self.padding) // self.stride
        return first, max(last, first) + 1

    def taps(self, outputs: int, size: int) -> list[Tap]:
        """Return, for each pixel of the kernel, the outputs that it adds to, and the inputs that it takes."""
        taps = []
        for offset in (self.dilation * tap - self.padding for tap in range(self.kernel)):
            first = max(0, -(offset // self.stride))
            last = min(size, (outputs - 1 - offset) // self.stride + 1)
            made = slice(first * self.stride + offset, (last - 1) * self.stride + offset + 1, self.stride)
            taps.append((made, slice(first, last)) if first < last else NO_TAP)
        return taps

    def patch_after(self, patch: int) -> int | None:
        """Return the side of the patches of the output."""
        return patch * self.stride


def _outer(bounds: Bounds, size: int, mapped: Sequence[int]) -> Bounds:
    return (0, *mapped[1 : len(bounds) - 1], size)


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """One axis of an operator on tiles: `needs[r]` is what position r needs of a map that is cut at `bounds`."""

    bounds: Bounds
    needs: tuple[Range, ...]

    def own(self, position: int) -> Range:
        """Return the input pixels that `position` owns."""
        return self.bounds[position], self.bounds[position + 1]

    @property
    def is_local(self) -> bool:
        """Whether every position owns all pixels that it needs."""
        owned = itertools.pairwise(self.bounds)
        return all(start <= need[0] and need[1] <= stop for need, (start, stop) in zip(self.needs, owned, strict=True))

    def part(self, needing: int, owning: int) -> Range | None:
        """Return the pixels of `owning` that `needing` needs, or None."""
        return intersection(self.needs[needing], self.own(owning))


def plan_axis(axis: AxisOperator, bounds: Bounds, out_bounds: Bounds) -> AxisPlan:
    """Return who needs which pixels for outputs that are cut at `out_bounds`; no output may be empty."""
    return AxisPlan(bounds, tuple(axis.need(out) for out in itertools.pairwise(out_bounds)))


def intersection(first: Range, second: Range) -> Range | None:
    """Return the pixels that are in both ranges, or None."""
    start, stop = max(first[0], second[0]), min(first[1], second[1])
    return (start, stop) if start < stop else None


class Rect(NamedTuple):
    """A rectangle of pixels."""

    rows: Range
    cols: Range

    @property
    def shape(self) -> tuple[int, int]:
        """The (height, width) of the rectangle."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    def common(self, other: "Rect") -> "Rect | None":
        """Return the pixels that are in both rectangles, or None."""
        rows, cols = intersection(self.rows, other.rows), intersection(self.cols, other.cols)
        return Rect(rows, cols) if rows and cols else None


def tile_of(bounds: tuple[Bounds, Bounds], row: int, col: int) -> Rect:
    """Return the rectangle at (row, col) of a map whose rows and columns are cut at `bounds`."""
    rows, cols = bounds
    return Rect((rows[row], rows[row + 1]), (cols[col], cols[col + 1]))


class Piece(NamedTuple):
    """A rectangle that travels; `peer` is the index of the other end in the tile group, row by row."""

    peer: int
    rect: Rect


@dataclass(frozen=True, slots=True)
class TileView:
    """One rank's view of an operator, in pixels of the whole input map.

    Rows and columns are exchanged together: each peer gets one message, corners included.
    """

    own: Rect
    need: Rect
    size: tuple[int, int]
    incoming: tuple[Piece, ...]
    outgoing: tuple[Piece, ...]
    local: bool
    """Whether no rank of the grid needs a pixel that it does not own, inside the map or outside.

    It is the same on every rank.
    """

    @classmethod
    def of(cls, rows: AxisPlan, cols: AxisPlan, row: int, col: int) -> "TileView":
        """Return the view of the rank at (row, col) of the grid."""
        grid = [(r, c) for r in range(len(rows.needs)) for c in range(len(cols.needs))]
        incoming, outgoing = [], []
        for peer, (r, c) in enumerate(grid):
            if (r, c) == (row, col):
                continue
            wanted = rows.part(row, r), cols.part(col, c)
            if wanted[0] and wanted[1]:
                incoming.append(Piece(peer, Rect(wanted[0], wanted[1])))
            given = rows.part(r, row), cols.part(c, col)
            if given[0] and given[1]:
                outgoing.append(Piece(peer, Rect(given[0], given[1])))
        need = Rect(rows.needs[row], cols.needs[col])
        size = rows.bounds[-1], cols.bounds[-1]
        local = rows.is_local and cols.is_local
        return cls(Rect(rows.own(row), cols.own(col)), need, size, tuple(incoming), tuple(outgoing), local)
