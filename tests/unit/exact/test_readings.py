"""What patches read of others, against a brute-force read of the whole map; the way home is the transpose."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lartpc_ds.exact.grid.patches import Axis, Bits, Patches
from lartpc_ds.exact.grid.readings import Bags, EventReading, PatchReading, PixelReading, Reading, TapReading
from lartpc_ds.exact.grid.windows import Transposed, Window
from tests.examples import examples
from tests.unit.exact.test_patches import bits, operators, outputs_of

EXAMPLES = examples(300)
SIDES = (4, 8)


def matrix(bags: Bags, columns: int) -> NDArray[np.int64]:
    """(bags, columns): how often each bag has each row."""
    assert bags.rows.dtype == bags.offsets.dtype == torch.int32
    found = np.zeros((len(bags.offsets) - 1, columns), np.int64)
    for bag, (start, stop) in enumerate(zip(bags.offsets[:-1].tolist(), bags.offsets[1:].tolist(), strict=True)):
        np.add.at(found[bag], bags.rows[start:stop].numpy(), 1)
    return found


def check(reading: Reading) -> NDArray[np.int64]:
    """The matrix of what is read, whose transpose is the way home."""
    read = matrix(reading.bags, reading.rows)
    assert read.shape == (reading.results, reading.rows)
    assert (matrix(reading.home, reading.results) == read.T).all()
    first, last = reading.results // 3, reading.results - reading.results // 4
    assert (matrix(reading.bags.of_rows(first, last), reading.rows) == read[first:last]).all()
    return read


def values_of(patches: Patches) -> NDArray[np.int64]:
    """A map of which equal patches are equal: each pixel holds the number of its pixel in a patch, from 1 on."""
    height, width = patches.shape
    numbers = 1 + np.arange(len(patches) * height * width).reshape(len(patches), height, width)
    whole = numbers[patches.index].transpose(0, 1, 3, 2, 4)
    whole = whole.reshape(patches.events, patches.grid[1] * height, patches.grid[2] * width)
    return whole[:, : patches.rows.size, : patches.cols.size]


def made(lit: Bits) -> Patches:
    return Patches(lit, Axis(lit.shape[1], SIDES[0]), Axis(lit.shape[2], SIDES[1]))


def at(whole: NDArray[np.int64], event: int, row: int, col: int) -> int:
    """A pixel of a map, 0 outside of it."""
    inside = 0 <= row < whole.shape[1] and 0 <= col < whole.shape[2]
    return int(whole[event, row, col]) if inside else 0


@EXAMPLES
@given(bits(), operators(), operators())
def test_a_patch_reads_its_window(lit: Bits, rows: Window | Transposed, cols: Window | Transposed) -> None:
    outputs = outputs_of(rows, lit.shape[1]), outputs_of(cols, lit.shape[2])
    assume(min(outputs) > 0)
    patches = made(lit)
    target, whole = patches.through(rows, cols, outputs), values_of(patches)
    after = [axis.patch_after(side) or 0 for axis, side in zip((rows, cols), SIDES, strict=True)]
    needs = [range(*axis.need((0, side))) for axis, side in zip((rows, cols), after, strict=True)]
    reading = PixelReading(patches, target, needs[0], needs[1])
    read = check(reading) @ (1 + np.arange(reading.rows))
    expected = [
        at(whole, event, row * SIDES[0] + y, col * SIDES[1] + x)
        for event, row, col in zip(target.event, target.row, target.col, strict=True)
        for y in needs[0]
        for x in needs[1]
    ]
    assert read.tolist() == expected
    assert reading.outside.tolist() == np.flatnonzero(np.array(expected) == 0).tolist()


@EXAMPLES
@given(bits(), st.tuples(*[st.sampled_from([2, 4])] * 2), st.tuples(*[st.integers(1, 4)] * 2), st.integers(1, 2))
def test_a_pixel_reads_its_taps(lit: Bits, stride: tuple[int, int], kernel: tuple[int, int], dilation: int) -> None:
    axes = [Window(k, s, k // 2, dilation) for k, s in zip(kernel, stride, strict=True)]
    outputs = [axis.outputs(size) for axis, size in zip(axes, lit.shape[1:], strict=True)]
    assume(min(outputs) > 0)
    patches = made(lit)
    target, whole = patches.through(axes[0], axes[1], (outputs[0], outputs[1])), values_of(patches)
    height, width = target.shape
    places = [
        [out * axis.stride - axis.padding + dilation * tap for out in range(side) for tap in range(axis.kernel)]
        for axis, side in zip(axes, target.shape, strict=True)
    ]
    reading = TapReading(patches, target, places[0], places[1])
    assert reading.taps == kernel[0] * kernel[1]
    read = check(reading) @ (1 + np.arange(reading.rows))
    expected = [
        at(
            whole,
            event,
            row * SIDES[0] + y * axes[0].stride - axes[0].padding + dilation * i,
            col * SIDES[1] + x * axes[1].stride - axes[1].padding + dilation * j,
        )
        for event, row, col in zip(target.event, target.row, target.col, strict=True)
        for y in range(height)
        for x in range(width)
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    assert read.tolist() == expected


@EXAMPLES
@given(bits())
def test_patches_are_put_onto_others_spread_and_gathered_by_event(lit: Bits) -> None:
    patches = made(lit)
    finer = patches.joined(patches.through(Window(5, 1, 2), Window(3, 1, 1), lit.shape[1:]))
    numbers = np.arange(len(patches))
    onto = check(PatchReading.onto(patches, finer)) @ numbers
    assert (onto[finer.index] == patches.index).all()
    spread = check(PatchReading.spread(patches)) @ numbers
    assert (spread.reshape(patches.grid) == patches.index).all()
    of_events = check(EventReading(patches))
    assert [np.flatnonzero(row).tolist() for row in of_events] == [
        np.flatnonzero(patches.event == event).tolist() for event in range(patches.events)
    ]


@pytest.mark.parametrize("kind", [PixelReading, TapReading])
def test_the_sums_of_bags_are_those_of_their_rows(kind: type[PixelReading]) -> None:
    lit = np.zeros((2, 20, 19), np.bool_)
    lit[1, 9, 4] = True
    patches = made(lit)
    target = patches.through(Window(3, 1, 1), Window(3, 1, 1), (20, 19))
    places = [range(-1, side + 1) if kind is PixelReading else _taps(side) for side in SIDES]
    reading = kind(patches, target, places[0], places[1])
    rows = torch.randn(reading.rows, 3, dtype=torch.float64)
    sums = torch.ops.aten.embedding_bag(rows, *reading.bags, False, 0, False, None, True)[0]
    expected = torch.from_numpy(matrix(reading.bags, reading.rows)).double() @ rows
    torch.testing.assert_close(sums, expected)


def _taps(side: int) -> list[int]:
    return [output + tap - 1 for output in range(side) for tap in range(3)]
