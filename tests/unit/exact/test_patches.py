"""Which patches are equal: types, kinds, counts and reach, against brute force on windows of single pixels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as F

from lartpc_ds.exact.grid.patches import Axis, Bits, Patches
from lartpc_ds.exact.grid.windows import Transposed, Window
from tests.examples import examples

EXAMPLES = examples(300)


@st.composite
def bits(draw: st.DrawFn, most: int = 30) -> Bits:
    """Lit pixels of 1 to 3 events: a few, none, or all."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, most)), draw(st.integers(1, most)))
    lit = np.zeros(shape, np.bool_)
    for place in draw(st.lists(st.tuples(*(st.integers(0, size - 1) for size in shape)), max_size=5)):
        lit[place] = True
    lit[0] |= draw(st.integers(0, 5)) == 0
    return lit


@st.composite
def operators(draw: st.DrawFn, strides: tuple[int, ...] = (1, 2, 4)) -> Window | Transposed:
    kernel, stride = draw(st.integers(1, 5)), draw(st.sampled_from(strides))
    kind = Transposed if draw(st.booleans()) else Window
    return kind(kernel, stride, draw(st.integers(0, 3)), draw(st.integers(1, 2)))


def outputs_of(operator: Window | Transposed, size: int) -> int:
    if isinstance(operator, Window):
        return operator.outputs(size)
    return (size - 1) * operator.stride - 2 * operator.padding + operator.dilation * (operator.kernel - 1) + 1


def reads(operator: Window | Transposed, output: int, size: int) -> list[int | None]:
    """What each tap of one output reads, tap by tap: a row of the map, or nothing."""
    found: list[int | None] = []
    for tap in range(operator.kernel):
        if isinstance(operator, Window):
            row, rest = output * operator.stride - operator.padding + operator.dilation * tap, 0
        else:
            row, rest = divmod(output + operator.padding - operator.dilation * tap, operator.stride)
        found.append(row if rest == 0 and 0 <= row < size else None)
    return found


def check(patches: Patches) -> None:
    """Every place has one patch, with its own content; counts and pixels add up to all places and pixels."""
    rows, cols = patches.rows, patches.cols
    places = list(itertools.product(*map(range, patches.grid)))
    assert patches.grid == (patches.events, len(rows.starts), len(cols.starts))
    counts = np.bincount(patches.index.reshape(-1), minlength=len(patches))
    assert (counts[: patches.special] == patches.counts).all() and (counts[patches.special :] == 1).all()
    contents: dict[tuple[object, ...], int] = {}
    for event, row, col in places:
        own = patches.lit[event, row * rows.patch :][: rows.patch, col * cols.patch :][:, : cols.patch].any()
        types = [axis.types[at * axis.patch :][: axis.patch].tolist() for axis, at in ((rows, row), (cols, col))]
        content = (event, row, col) if own else (event, tuple(types[0]), tuple(types[1]))
        assert contents.setdefault(content, patches.index[event, row, col]) == patches.index[event, row, col]
    assert len(contents) == len({*contents.values()}) == len(patches)
    of_patch = np.full((len(patches), *patches.shape), 1.0)
    of_patch[: patches.special] = patches.pixels()
    assert of_patch.sum() == patches.lit.size
    assert all(patches.index[patches.event[k], patches.row[k], patches.col[k]] == k for k in range(len(patches)))
    for numbers in (patches.event[: patches.special], patches.event[patches.special :]):
        assert (np.diff(numbers) >= 0).all()
    special, plain = patches.bounds_of_events()
    for event in range(patches.events):
        of_event = [*range(*special[event : event + 2]), *range(*plain[event : event + 2])]
        assert of_event == np.flatnonzero(patches.event == event).tolist()


@EXAMPLES
@given(bits(), st.sampled_from([1, 4, 8]), st.sampled_from([1, 4, 12]), st.data())
def test_distinct_patches_have_distinct_contents_and_stand_for_every_place(
    lit: Bits, height: int, width: int, data: st.DataObject
) -> None:
    patches = Patches(lit, Axis(lit.shape[1], height), Axis(lit.shape[2], width))
    check(patches)
    rows, cols = (data.draw(operators(tuple(n for n in (1, 2, 4) if side % n == 0))) for side in (height, width))
    outputs = outputs_of(rows, lit.shape[1]), outputs_of(cols, lit.shape[2])
    assume(min(outputs) > 0)
    check(patches.through(rows, cols, outputs))


@EXAMPLES
@given(bits(), operators(), operators(), st.data())
def test_an_output_is_lit_if_its_window_reads_a_lit_pixel(
    lit: Bits, rows: Window | Transposed, cols: Window | Transposed, data: st.DataObject
) -> None:
    outputs = outputs_of(rows, lit.shape[1]), outputs_of(cols, lit.shape[2])
    assume(min(outputs) > 0)
    reached = Patches(lit, Axis(lit.shape[1], 4), Axis(lit.shape[2], 8)).through(rows, cols, outputs).lit
    event, row, col = (data.draw(st.integers(0, size - 1)) for size in reached.shape)
    for place in {(event, row, col), *map(tuple, np.argwhere(reached)[:5].tolist())}:
        seen = [
            lit[place[0], y, x]
            for y in reads(rows, place[1], lit.shape[1])
            for x in reads(cols, place[2], lit.shape[2])
            if y is not None and x is not None
        ]
        assert reached[place] == any(seen)


@EXAMPLES
@given(st.integers(1, 40), st.lists(operators(), min_size=1, max_size=4))
def test_two_rows_have_one_type_if_all_windows_have_read_the_same_from_them(
    size: int, sequence: list[Window | Transposed]
) -> None:
    axis, types = Axis(size, 64), [0] * size
    for operator in sequence:
        outputs = outputs_of(operator, len(types))
        assume(0 < outputs < 200)
        axis = axis.through(operator, outputs)
        seen = [
            tuple(-1 if row is None else types[row] for row in reads(operator, output, len(types)))
            for output in range(outputs)
        ]
        types = [sorted({*seen}).index(one) for one in seen]
        same = {(a, b) for a, b in zip(types, axis.types.tolist(), strict=True)}
        assert len(same) == len({*types}) == len({*axis.types.tolist()})


def test_reach_is_that_of_a_convolution_of_ones() -> None:
    lit = np.random.default_rng(1).random((2, 40, 37)) < 0.01
    patches = Patches(lit, Axis(40, 8), Axis(37, 8)).through(Window(7, 2, 3), Window(3, 1, 2, 2), (20, 37))
    ones = torch.ones(1, 1, 7, 3)
    reached = F.conv2d(torch.from_numpy(lit)[:, None].float(), ones, None, (2, 1), (3, 2), (1, 2))[:, 0] > 0
    assert (torch.from_numpy(patches.lit) == reached).all()


@EXAMPLES
@given(bits(), st.data())
def test_a_joined_map_tells_apart_what_either_map_tells_apart(lit: Bits, data: st.DataObject) -> None:
    patches = Patches(lit, Axis(lit.shape[1], 4), Axis(lit.shape[2], 4))
    one, other = (
        patches.through(Window(k, 1, k // 2), Window(m, 1, m // 2), lit.shape[1:])
        for k, m in (data.draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 2)) for _ in range(2))
    )
    joined = one.joined(other)
    check(joined)
    assert (joined.lit == (one.lit | other.lit)).all()
    for axis, first, second in ((joined.rows, one.rows, other.rows), (joined.cols, one.cols, other.cols)):
        pairs = list(zip(first.types.tolist(), second.types.tolist(), strict=True))
        assert len({*zip(pairs, axis.types.tolist(), strict=True)}) == len({*pairs}) == len({*axis.types.tolist()})
    for part in (one, other):
        assert {*zip(joined.index.flat, part.index.flat, strict=True)} == {
            (k, part.index[joined.event[k], joined.row[k], joined.col[k]]) for k in range(len(joined))
        }


@pytest.mark.parametrize(("place", "distinct"), [(None, 2), ((0, 0), 3), ((20, 20), 3), ((31, 32), 3)])
def test_an_image_of_32_by_33_pixels_has_few_distinct_patches(place: tuple[int, int] | None, distinct: int) -> None:
    """In patches of 16: dark ones are equal but where they stick out, and the one with a lit pixel is its own."""
    lit = np.zeros((1, 32, 33), np.bool_)
    if place is not None:
        lit[(0, *place)] = True
    assert len(Patches(lit, Axis(32, 16), Axis(33, 16))) == distinct
