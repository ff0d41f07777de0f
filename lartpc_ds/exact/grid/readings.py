"""A `Reading` says which pixels of one set of patches every pixel of another reads, or which patches.

It is a matrix of zeros and ones: its product with the pixels (pixels x channels) is what is read, and its transpose
brings a gradient home, where a pixel that many have read gets the sum. Both are kept as *bags*: the numbers of the rows
to add up, and where the rows of each bag begin. Outside the map a bag is empty, so what is read there is zero. torch's
`embedding_bag` is the product, at the speed of a copy, with sums in float32 and always in the same order. Rejected:
`index_add`, which is slower, sums in the precision of the map, and on CUDA in no fixed order; and copies strip by
strip, which take 9 calls each way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lartpc_ds.exact.grid.patches import Integers, Patches
from lartpc_ds.exact.grid.pieces import has_no_data

__all__ = ["Bags", "EventReading", "PatchReading", "PixelReading", "Reading", "TapReading"]

_Few = NDArray[np.int32]


class Bags(NamedTuple):
    """Bag k has the rows[offsets[k] : offsets[k + 1]] of a matrix; both are int32."""

    rows: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: NDArray[Any], sizes: NDArray[Any] | None) -> "Bags":
        """Return bags of these sizes, or of one row each."""
        offsets = np.arange(len(rows) + 1) if sizes is None else np.concatenate([[0], np.cumsum(sizes.reshape(-1))])
        return cls(*(torch.from_numpy(values.astype(np.int32)) for values in (rows, offsets)))

    @classmethod
    def without_values(cls, rows: int, bags: int) -> "Bags":
        """Return lists of these sizes alone, for a trace, which has only sizes anyway."""
        return cls(torch.empty(rows, dtype=torch.int32), torch.empty(bags + 1, dtype=torch.int32))

    def of_rows(self, first: int, last: int) -> "Bags":
        """Return the bags [first, last)."""
        offsets = self.offsets[first : last + 1]
        if has_no_data(offsets):
            return Bags(self.rows[first:last], offsets)
        start, stop = int(offsets[0]), int(offsets[-1])
        return Bags(self.rows[start:stop], offsets - start)

    def to(self, device: torch.device) -> "Bags":
        """Return the bags on a device."""
        return self if self.rows.device == device else Bags(self.rows.to(device), self.offsets.to(device))


class Reading:
    """What is read, and the way home."""

    rows: int
    """The number of rows that are read from."""
    results: int
    """The number of rows of the result."""

    @property
    def bags(self) -> Bags:
        """The rows that each row of the result reads."""
        raise NotImplementedError

    @property
    def home(self) -> Bags:
        """The rows of the result that have read each row."""
        raise NotImplementedError

    @property
    def ones(self) -> int:
        """How many ones the matrix has, at most."""
        return self.results

    # A trace counts the bytes of lists, which live as long as the reading, and need not make them.

    @cached_property
    def traced_bags(self) -> Bags:
        """`bags` without their values."""
        return Bags.without_values(self.ones, self.results)

    @cached_property
    def traced_home(self) -> Bags:
        """`home` without its values."""
        return Bags.without_values(self.ones, self.rows)


class PatchReading(Reading):
    """Whole patches: patch k of the result is patch source[k]."""

    def __init__(self, source: Integers, patches: int) -> None:
        self.source, self.rows, self.results = source, patches, len(source)

    @classmethod
    def onto(cls, patches: Patches, target: Patches) -> "PatchReading":
        """Return the reading that puts the same map on other patches, which tell more places apart."""
        assert patches.grid == target.grid
        return cls(patches.index[target.event, target.row, target.col], len(patches))

    @classmethod
    def spread(cls, patches: Patches) -> "PatchReading":
        """Return the reading that puts a patch at each place."""
        return cls(patches.index.reshape(-1), len(patches))

    @cached_property
    def bags(self) -> Bags:
        """One patch each."""
        return Bags.of(self.source, None)

    @cached_property
    def home(self) -> Bags:
        """All places of each patch."""
        return Bags.of(np.argsort(self.source, kind="stable"), np.bincount(self.source, minlength=self.rows))


class EventReading(Reading):
    """Each event reads all of its patches."""

    def __init__(self, patches: Patches) -> None:
        self._event, self.rows, self.results = patches.event, len(patches), patches.events

    @property
    def ones(self) -> int:
        """One for each patch."""
        return self.rows

    @cached_property
    def bags(self) -> Bags:
        """The patches of each event."""
        return Bags.of(np.argsort(self._event, kind="stable"), np.bincount(self._event, minlength=self.results))

    @cached_property
    def home(self) -> Bags:
        """The event of each patch."""
        return Bags.of(self._event, None)


@dataclass(frozen=True)
class _Line:
    """One axis of a window: where each of its rows lies, for every patch of the result."""

    step: Integers
    """How many patches further each row lies, (steps)."""
    of_row: Integers
    """The number of the step of each row, (rows)."""
    local: Integers
    """The place of each row in its patch, (rows)."""
    inside: NDArray[np.bool_]
    """Whether each row is inside the map, (patches of the result, rows)."""

    @classmethod
    def of(cls, at: Integers, rows: Integers, patch: int, size: int) -> "_Line":
        step, of_row = np.unique(rows // patch, return_inverse=True)
        absolute = at[:, None] * patch + rows
        return cls(step, of_row.reshape(-1), rows % patch, (absolute >= 0) & (absolute < size))


class PixelReading(Reading):
    """The window of each patch: rows and columns at given places relative to the patch's first ones."""

    def __init__(self, source: Patches, target: Patches, rows: Sequence[int], cols: Sequence[int]) -> None:
        """Let each patch of `target` read these rows and columns of the map of `source` around it.

        Patches of both maps that lie at the same place must begin at the same place of the image.
        """
        self.shape = len(target), len(rows), len(cols)
        """The patches, rows and columns that are read."""
        # not the patches themselves, whose lit pixels would stay in memory until the backward pass
        self._places = target.event, target.row, target.col
        self._index, self._side, self._size = source.index, source.shape, source.size
        self._at = np.asarray(rows), np.asarray(cols)
        self.rows, self.results = len(source) * source.shape[0] * source.shape[1], len(target) * self.window

    @cached_property
    def _lines(self) -> tuple[_Line, _Line]:
        _, row, col = self._places
        return (
            _Line.of(row, self._at[0], self._side[0], self._size[0]),
            _Line.of(col, self._at[1], self._side[1], self._size[1]),
        )

    @cached_property
    def _read(self) -> _Few:
        """The patch at each step from each patch, (patches, steps, steps); what is outside the grid is not inside."""
        event, *places = self._places
        row, col = (
            np.clip(at[:, None] + line.step, 0, count - 1)
            for at, line, count in zip(places, self._lines, self._index.shape[1:], strict=True)
        )
        read: _Few = self._index[event[:, None, None], row[:, :, None], col[:, None, :]].astype(np.int32)
        return read

    @property
    def window(self) -> int:
        """The number of pixels that each patch reads."""
        return self.shape[1] * self.shape[2]

    @cached_property
    def _inside(self) -> NDArray[np.bool_] | None:
        """Whether each pixel is inside the map, or None if all are."""
        rows, cols = self._lines
        if rows.inside.all() and cols.inside.all():
            return None
        return rows.inside[:, :, None] & cols.inside[:, None, :]

    @cached_property
    def bags(self) -> Bags:
        """At most one pixel each."""
        rows, cols = self._lines
        height, width = self._side
        in_patch = (rows.local[:, None] * width + cols.local).astype(np.int32)
        pixels = self._ordered(self._read[:, rows.of_row][:, :, cols.of_row] * np.int32(height * width) + in_patch)
        if self._inside is None:
            return Bags.of(pixels.reshape(-1), None)
        inside = self._ordered(self._inside)
        return Bags.of(pixels[inside], inside)

    def _ordered(self, values: NDArray[Any]) -> NDArray[Any]:
        """(patches, rows, columns) -> the same values in the order in which they are read."""
        return values

    @cached_property
    def outside(self) -> Tensor:
        """The numbers of the pixels of the result that are outside the map."""
        numbers = np.zeros(0, np.int64) if self._inside is None else np.flatnonzero(~self._inside)
        return torch.from_numpy(numbers)

    @cached_property
    def home(self) -> Bags:
        """All pixels of the result that read each pixel, in the order of the steps."""
        sizes = np.bincount(self.bags.rows.numpy(), minlength=self.rows)
        free = (np.cumsum(sizes) - sizes).reshape(-1, *self._side)
        index: _Few = np.empty(len(self.bags.rows), np.int32)
        for step_row in range(len(self._lines[0].step)):
            for step_col in range(len(self._lines[1].step)):
                self._bring_home(index, free, step_row, step_col)
        return Bags.of(index, sizes)

    def _bring_home(self, index: _Few, free: Integers, step_row: int, step_col: int) -> None:
        """Write the readers at one step into the bags; `free` holds the first free place of each bag.

        Whether a pixel is inside the map is the same for all that read it, so patches that read one patch are simply
        counted.
        """
        rows, cols = self._lines
        ys, xs = np.flatnonzero(rows.of_row == step_row), np.flatnonzero(cols.of_row == step_col)
        readers = np.flatnonzero(rows.inside[:, ys].any(1) & cols.inside[:, xs].any(1))
        read = self._read[readers, step_row, step_col]
        order = np.argsort(read, kind="stable")
        readers, read = readers[order], read[order]
        inside = rows.inside[readers][:, ys, None] & cols.inside[readers][:, None, xs]
        earlier = np.arange(len(read)) - np.searchsorted(read, read)  # readers of the same patch
        at = rows.local[ys][:, None], cols.local[xs]
        place = free[read[:, None, None], at[0], at[1]] + earlier[:, None, None]
        _, height, width = self.shape
        pixel = readers[:, None, None] * (height * width) + ys[:, None] * width + xs
        index[place[inside]] = pixel[inside]
        several, times = np.unique(read, return_counts=True)
        free[several[:, None, None], at[0], at[1]] += times[:, None, None]


class TapReading(PixelReading):
    """The window of each pixel, one after the other: (patches, rows, columns, rows and columns of a window).

    Windows have pixels in common, which are read several times. So a convolution of small patches is a product of
    matrices, which is faster than convolving patches of few pixels with wide surroundings.
    """

    def __init__(self, source: Patches, target: Patches, rows: Sequence[int], cols: Sequence[int]) -> None:
        """Let each pixel of a patch of `target` read a window; these are the rows and columns of all its windows."""
        super().__init__(source, target, rows, cols)
        self.side = target.shape

    @property
    def taps(self) -> int:
        """The number of pixels of a window."""
        return self.window // (self.side[0] * self.side[1])

    def _ordered(self, values: NDArray[Any]) -> NDArray[Any]:
        patches, rows, cols = self.shape
        (down, across), (height, width) = self.side, (rows // self.side[0], cols // self.side[1])
        return values.reshape(patches, down, height, across, width).transpose(0, 1, 3, 2, 4)

    @cached_property
    def home(self) -> Bags:
        """All windows that have read each pixel."""
        rows = self.bags.rows.numpy()
        sizes = np.diff(self.bags.offsets.numpy())
        readers = np.arange(len(sizes)) if sizes.all() else np.flatnonzero(sizes)
        return Bags.of(readers[np.argsort(rows, kind="stable")], np.bincount(rows, minlength=self.rows))
