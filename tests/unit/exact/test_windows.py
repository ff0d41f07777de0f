"""Halos on integers against a brute-force enumeration of windows."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lartpc_ds.exact.grid.windows import (
    AxisOperator,
    AxisPlan,
    Range,
    Same,
    Shift,
    TileView,
    Transposed,
    Window,
    plan_axis,
)
from lartpc_ds.layout import Bounds
from tests.examples import examples

EXAMPLES = examples(150)


@st.composite
def cuts(draw: st.DrawFn, size: int) -> Bounds:
    """Any cut of `size` pixels into tiles of at least one."""
    inner = draw(st.sets(st.integers(1, size - 1), max_size=4)) if size > 1 else set()
    return (0, *sorted(inner), size)


sizes = st.integers(1, 30)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, int, int]:
    """A window, input pixels and outputs: as many as torch gives, or one more (ceil_mode)."""
    window = Window(draw(st.integers(1, 7)), draw(st.integers(1, 5)), draw(st.integers(0, 6)), draw(st.integers(1, 3)))
    size = draw(sizes)
    outputs = (size + 2 * window.padding - window.reach) // window.stride + 1 + draw(st.integers(0, 1))
    assume(outputs >= 1 and (outputs - 1) * window.stride - window.padding < size)
    return window, size, outputs


@st.composite
def transposed(draw: st.DrawFn) -> tuple[Transposed, int, int]:
    operator = Transposed(
        draw(st.integers(1, 7)), draw(st.integers(1, 5)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    )
    size, extra = draw(sizes), draw(st.integers(0, max(operator.stride, operator.dilation) - 1))
    reach = operator.dilation * (operator.kernel - 1) + 1
    outputs = (size - 1) * operator.stride - 2 * operator.padding + reach + extra
    assume(outputs >= 1)
    return operator, size, outputs


@st.composite
def shifts(draw: st.DrawFn) -> tuple[Shift, int, int]:
    before, size = draw(st.integers(-9, 9)), draw(sizes)
    outputs = size + before + draw(st.integers(-9, 9))
    assume(outputs >= 1)
    return Shift(before), size, outputs


def reads_window(operator: Window, out: int, size: int) -> list[int]:
    return [out * operator.stride - operator.padding + operator.dilation * tap for tap in range(operator.kernel)]


def reads_transposed(operator: Transposed, out: int, size: int) -> list[int]:
    return [
        pixel
        for pixel in range(size)
        for tap in range(operator.kernel)
        if pixel * operator.stride - operator.padding + operator.dilation * tap == out
    ]


def reads_shift(operator: Shift, out: int, size: int) -> list[int]:
    return [out - operator.before]


OPERATORS = {
    "window": (windows(), reads_window),
    "transposed": (transposed(), reads_transposed),
    "shift": (shifts(), reads_shift),
}


def tiles(bounds: Bounds) -> Iterable[Range]:
    return itertools.pairwise(bounds)


@pytest.mark.parametrize("name", OPERATORS)
@EXAMPLES
@given(data=st.data())
def test_every_output_has_one_owner(name: str, data: st.DataObject) -> None:
    operator, size, outputs = data.draw(OPERATORS[name][0])
    bounds = data.draw(cuts(size))
    out_bounds = operator.out_bounds(bounds, outputs)
    assert len(out_bounds) == len(bounds)
    assert [out for start, stop in tiles(out_bounds) for out in range(start, stop)] == list(range(outputs))


@pytest.mark.parametrize("name", OPERATORS)
@EXAMPLES
@given(data=st.data())
def test_needs_are_the_pixels_that_the_outputs_read(name: str, data: st.DataObject) -> None:
    """None is missing; and none is fetched beyond the first and last that an output reads."""
    strategy, reads = OPERATORS[name]
    operator, size, outputs = data.draw(strategy)
    start = data.draw(st.integers(0, outputs - 1))
    stop = data.draw(st.integers(start + 1, outputs))
    wanted = [pixel for out in range(start, stop) for pixel in reads(operator, out, size)]
    first, end = operator.need((start, stop))
    assert first < end
    inside = [pixel for pixel in range(first, end) if 0 <= pixel < size]
    if not isinstance(operator, Transposed):
        assert (first, end) == (min(wanted), max(wanted) + 1)
        return
    assert set(wanted) <= set(inside)
    if wanted and operator.dilation == 1:  # dilated taps may skip a pixel at the end
        assert (inside[0], inside[-1]) == (min(wanted), max(wanted))


@EXAMPLES
@given(st.data())
def test_strides_give_tiles_the_outputs_that_start_in_them(data: st.DataObject) -> None:
    """So that the rows which an output reads are its owner's, but for the halo."""
    window, size, outputs = data.draw(windows())
    bounds = data.draw(cuts(size))
    out_bounds = window.out_bounds(bounds, outputs)
    for position, (start, stop) in enumerate(tiles(out_bounds)):
        last = position == len(bounds) - 2
        for out in range(start, stop):
            assert bounds[position] <= out * window.stride and (last or out * window.stride < bounds[position + 1])


@EXAMPLES
@given(st.data())
def test_a_map_moved_to_another_cut_needs_its_own_pixels(data: st.DataObject) -> None:
    size = data.draw(st.integers(5, 60))
    source, target = ((0, *sorted(data.draw(st.permutations(range(1, size)))[:3]), size) for _ in range(2))
    assert Same(target).out_bounds(source, size) == target
    assert plan_axis(Same(target), source, target).needs == tuple(tiles(target))


def test_a_map_is_not_moved_to_the_cut_of_another_size() -> None:
    with pytest.raises(AssertionError):
        Same((0, 3, 7)).out_bounds((0, 3, 6), 6)


@st.composite
def axis_plans(draw: st.DrawFn) -> AxisPlan:
    operator, size, outputs = draw(st.one_of(*(strategy for strategy, _ in OPERATORS.values())))
    bounds = draw(cuts(size))
    out_bounds = operator.out_bounds(bounds, outputs)
    assume(all(start < stop for start, stop in tiles(out_bounds)))
    return plan_axis(operator, bounds, out_bounds)


@EXAMPLES
@given(axis_plans(), axis_plans())
def test_what_a_rank_waits_for_is_what_the_others_send(rows: AxisPlan, cols: AxisPlan) -> None:
    grid = list(itertools.product(range(len(rows.needs)), range(len(cols.needs))))
    views = [TileView.of(rows, cols, *at) for at in grid]
    waited = {(peer, rank, rect) for rank, here in enumerate(views) for peer, rect in here.incoming}
    sent = {(rank, peer, rect) for rank, here in enumerate(views) for peer, rect in here.outgoing}
    assert waited == sent
    assert all(peer != rank for peer, rank, _ in waited)


@EXAMPLES
@given(axis_plans(), axis_plans())
def test_own_pixels_and_pieces_make_up_the_need_once(rows: AxisPlan, cols: AxisPlan) -> None:
    for at in itertools.product(range(len(rows.needs)), range(len(cols.needs))):
        here = TileView.of(rows, cols, *at)
        have = [pixel for rect in (here.own, *(rect for _, rect in here.incoming)) for pixel in pixels(rect, here.need)]
        inside = pixels(((0, here.size[0]), (0, here.size[1])), here.need)
        assert sorted(have) == sorted(inside)


def pixels(rect: Sequence[Range], within: Sequence[Range]) -> list[tuple[int, int]]:
    rows, cols = (range(max(one[0], other[0]), min(one[1], other[1])) for one, other in zip(rect, within, strict=True))
    return list(itertools.product(rows, cols))


@pytest.mark.parametrize(
    ("operator", "need"),
    [
        (lambda: Window(3, 1, 1), [(-1, 5), (3, 9)]),
        (lambda: Window(3, 2, 1), [(-1, 4), (3, 8)]),
        (lambda: Window(2, 2), [(0, 4), (4, 8)]),
        (lambda: Window(1, 4), [(0, 1), (4, 5)]),
        (lambda: Window(3, 1, 4, 4), [(-4, 8), (0, 12)]),
    ],
)
def test_halos_by_hand(operator: Callable[[], AxisOperator], need: list[Range]) -> None:
    """Eight pixels in two tiles: both sides, one side, none, fewer than its own, a whole tile and more."""
    window = operator()
    assert isinstance(window, Window)
    outputs = (8 + 2 * window.padding - window.reach) // window.stride + 1
    out_bounds = window.out_bounds((0, 4, 8), outputs)
    assert list(plan_axis(window, (0, 4, 8), out_bounds).needs) == need
