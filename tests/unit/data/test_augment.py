import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lartpc_ds.data.augment import Augmentation, Axis, AxisRead, Place, augmented_read


class Numbered:
    """Every pixel has a number of its own, from 1; the target is the number, too."""

    image_shape = (2, 7, 11)
    recorded_shape = (7, 11)
    classes = ("a",)
    task = "pixels"
    labels = None

    def __init__(self):
        self.whole = np.arange(1, 2 * 7 * 11 + 1, dtype=np.float32).reshape(self.image_shape)

    def __len__(self):
        return 1

    def ids(self):
        return []

    def read(self, index, rows, cols):
        assert 0 <= rows[0] < rows[1] <= 7 and 0 <= cols[0] < cols[1] <= 11, "no read is empty or sticks out"
        part = self.whole[:, slice(*rows), slice(*cols)]
        return part, part[0].astype(np.uint8)


def by_hand(whole, axes, fill):
    """Mirror, then move, on the whole image."""
    for dim, axis in zip((-2, -1), axes, strict=True):
        if axis.mirrored:
            whole = np.flip(whole, dim)
        moved = np.full_like(whole, fill)
        size = whole.shape[dim]
        to, came = (slice(max(sign * axis.shift, 0), size + min(sign * axis.shift, 0)) for sign in (1, -1))
        where = [slice(None)] * whole.ndim
        where[dim] = to
        source = list(where)
        source[dim] = came
        if abs(axis.shift) < size:
            moved[tuple(where)] = whole[tuple(source)]
        whole = moved
    return whole


def axes_of(size):
    return st.builds(Axis, st.booleans(), st.integers(-size + 1, size - 1))


@given(axes_of(7), axes_of(11), st.integers(1, 6), st.integers(1, 10))
def test_any_tiles_make_up_the_augmented_image(rows, cols, row_cut, col_cut):
    source = Numbered()
    expected = by_hand(source.whole, (rows, cols), 0)
    target = by_hand(source.whole[0].astype(np.int64), (rows, cols), -1)
    for down, across in itertools.product([(0, row_cut), (row_cut, 7)], [(0, col_cut), (col_cut, 11)]):
        image, pixels = augmented_read(source, 0, down, across, (rows, cols))
        np.testing.assert_array_equal(image, expected[:, slice(*down), slice(*across)])
        np.testing.assert_array_equal(pixels, target[slice(*down), slice(*across)])


@pytest.mark.parametrize(
    ("wanted", "axis", "window"),
    [
        ((2, 5), Axis(), AxisRead((2, 5), 3, 0, 0)),
        ((2, 5), Axis(mirrored=True), AxisRead((5, 8), 3, 0, 0)),
        ((0, 5), Axis(shift=2), AxisRead((0, 3), 3, 2, 0)),
        ((6, 10), Axis(shift=-3), AxisRead((9, 10), 1, 0, 3)),
        ((0, 5), Axis(True, 2), AxisRead((7, 10), 3, 2, 0)),
        ((0, 3), Axis(shift=5), AxisRead((0, 1), 0, 3, 0)),
    ],
)
def test_windows_by_hand(wanted, axis, window):
    assert AxisRead.of(wanted, 10, axis) == window


def test_what_is_not_augmented_is_read_as_it_is():
    source = Numbered()
    image, target = augmented_read(source, 0, (1, 3), (2, 5), (Axis(), Axis()))
    assert np.shares_memory(image, source.whole) and target.dtype == np.uint8
    assert Augmentation((False, False), (0, 0), 3).draw(Place(1, 2)) == (Axis(), Axis())


def test_the_draw_depends_on_seed_step_and_place_only():
    augmentation = Augmentation((True, True), (20, 30), 5)
    draws = {(step, slot): augmentation.draw(Place(step, slot)) for step in range(20) for slot in range(20)}
    assert draws == {key: Augmentation((True, True), (20, 30), 5).draw(Place(*key)) for key in draws}
    assert Augmentation((True, True), (20, 30), 6).draw(Place(0, 0)) != draws[0, 0]
    assert len(set(draws.values())) > 350


def test_mirrors_are_fair_and_independent_and_shifts_uniform():
    draws = [Augmentation((True, True), (2, 3), 1).draw(Place(step, 0)) for step in range(4000)]
    for rows, cols in itertools.product((False, True), repeat=2):
        assert sum((row.mirrored, col.mirrored) == (rows, cols) for row, col in draws) == pytest.approx(1000, abs=120)
    for axis, most in ((0, 2), (1, 3)):
        counts = np.unique([draw[axis].shift for draw in draws], return_counts=True)
        assert counts[0].tolist() == list(range(-most, most + 1))
        assert np.allclose(counts[1], 4000 / (2 * most + 1), atol=120)


def test_without_flip_nothing_is_mirrored():
    draws = [Augmentation((False, False), (2, 0), 1).draw(Place(step, 0)) for step in range(50)]
    assert not any(row.mirrored or col.mirrored or col.shift for row, col in draws)


def test_each_axis_is_mirrored_by_its_own_key_and_the_draw_stays():
    """A run of `flip = true` keeps its draws; "wires" and "ticks" take one axis of the same."""
    both, wires, ticks = (
        [Augmentation(flip, (0, 0), 4).draw(Place(step, 1)) for step in range(200)]
        for flip in ((True, True), (True, False), (False, True))
    )
    assert wires == [(rows, Axis()) for rows, _ in both] and ticks == [(Axis(), cols) for _, cols in both]
    assert 60 < sum(rows.mirrored for rows, _ in wires) < 140
