"""What charge lights of the patches of an image and of the maps of a network, without a bitmap."""

import numpy as np
import pytest

from lartpc_ds.data.event import EventId
from lartpc_ds.data.lit_shares import Cells, Cut, Reach, describe_shares

IMAGE, PATCH = (50, 70), (8, 16)
REACHES = (Reach(0, 0, 0, 0), Reach(3, 9, 1, 20), Reach(50, 70, 50, 70))


def by_pixel(lit: np.ndarray, reach: Reach) -> float:
    """The share of patches that the cells of 4 x 4 pixels with a lit pixel reach, painted pixel by pixel."""
    painted = np.zeros_like(lit)
    for row, col in np.argwhere(lit) // 4 * 4:
        rows = slice(max(row - reach.up, 0), row + 4 + reach.down)
        painted[rows, max(col - reach.left, 0) : col + 4 + reach.right] = True
    tops, lefts = (range(0, size, side) for size, side in zip(IMAGE, PATCH, strict=True))
    patches = [painted[top : top + PATCH[0], left : left + PATCH[1]].any() for top in tops for left in lefts]
    return float(np.mean(patches))


@pytest.mark.parametrize("pixels", [0, 1, 2, 15, 200])
def test_shares_are_those_of_a_painted_image(pixels):
    lit = np.zeros(IMAGE, np.bool_)
    lit.reshape(-1)[np.random.default_rng(pixels).choice(lit.size, pixels, replace=False)] = True
    cut = Cut(IMAGE, PATCH, REACHES)
    rows, cols = np.nonzero(lit)
    shares = cut.shares(Cells.of_pixels(np.r_[rows, rows[:3]], np.r_[cols, cols[:3]]))  # a pixel lit in two planes
    assert shares == pytest.approx([by_pixel(lit, reach) for reach in (Reach(0, 0, 0, 0), *REACHES)])
    assert cut.shares(Cells.of_bits(lit[None])) == shares
    assert shares[-1] == bool(pixels), "the last map is lit all over by any pixel"


def test_the_shares_of_a_batch_are_the_mean_of_its_events():
    lit = np.random.default_rng(3).random((4, *IMAGE)) < 0.002
    cut = Cut(IMAGE, PATCH, REACHES)
    each = [cut.shares(Cells.of_bits(one[None])) for one in lit]
    assert len({shares[1] for shares in each}) > 1
    assert cut.shares(Cells.of_bits(lit)) == pytest.approx(np.mean(each, axis=0))


def test_what_is_said_of_shares():
    ids = [EventId(f"{name}.h5", index, 1, 1, 1) for name in "ab" for index in (0, 1)]
    shares = np.array([[0.01, 0.02, 0.1], [0.02, 0.03, 0.2], [0.06, 0.07, 0.5], [0.02, 0.03, 0.2]])
    said, brightest = describe_shares(shares, ("stem", "layer1"), (32, 64), ids)
    assert "patches of 32 x 64 pixels" in said
    assert said.endswith(": image 2 % (4.8 %, 6 %), stem 3 % (5.8 %, 7 %), layer1 20 % (41 %, 50 %)")
    assert brightest == "the brightest event is b.h5: event 0, which lights 6 % of the image's patches"
    only, _ = describe_shares(shares[:, :1], (), (32, 32), ids)
    assert only.endswith(": image 2 % (4.8 %, 6 %)")
    assert describe_shares(shares[:0], (), (32, 32), []) == []
