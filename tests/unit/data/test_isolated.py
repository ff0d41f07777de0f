"""Which lit pixels have few lit ones around them, against a count by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lartpc_ds.data.isolated import WINDOW, isolated

images = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda pixels: np.array(pixels, np.bool_).reshape(shape)
    )
)


def by_hand(lit: np.ndarray, fewest: int) -> list[tuple[int, int]]:
    """The isolated pixels, from the window of each, which a slice ends at the edges of the image."""
    return [
        (row, col)
        for row, col in np.argwhere(lit).tolist()
        if lit[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3].sum() < fewest
    ]


def found(lit: np.ndarray, fewest: int) -> list[tuple[int, int]]:
    flat = np.flatnonzero(lit)
    mask = isolated(flat, lit.shape[1], fewest)
    assert mask.shape == flat.shape and mask.dtype == np.bool_
    return [divmod(pixel, lit.shape[1]) for pixel in flat[mask].tolist()]


@given(images, st.integers(0, WINDOW + 1))
def test_the_count_is_that_of_every_window_by_hand(lit, fewest):
    assert found(lit, fewest) == by_hand(lit, fewest)


@given(images, st.integers(2, 6))
def test_mirror_images_lose_the_mirrored_pixels(lit, fewest):
    rows, cols = lit.shape
    mirrored = [(rows - 1 - row, cols - 1 - col) for row, col in found(lit[::-1, ::-1], fewest)]
    assert sorted(mirrored) == found(lit, fewest)


def test_a_row_does_not_go_on_at_the_other_edge():
    lit = np.zeros((4, 6), np.bool_)
    lit[0, [4, 5]] = lit[1, [0, 1]] = True  # consecutive in flat indices but for two columns
    assert found(lit, 3) == [(0, 4), (0, 5), (1, 0), (1, 1)]
    assert found(lit, 2) == []


def test_the_window_reaches_two_pixels_and_no_further():
    for row, col in [(2, 2), (2, 0), (0, 2)]:
        lit = np.zeros((7, 7), np.bool_)
        lit[3, 3] = lit[3 + row, 3 + col] = True
        assert found(lit, 2) == []
    for row, col in [(3, 0), (0, 3), (3, 3)]:
        lit = np.zeros((7, 7), np.bool_)
        lit[3, 3] = lit[3 + row, 3 + col] = True
        assert len(found(lit, 2)) == 2


def test_an_image_without_lit_pixels():
    assert isolated(np.zeros(0, np.int64), 5, 3).tolist() == []
