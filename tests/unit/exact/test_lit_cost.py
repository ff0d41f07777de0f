"""The predicted cost of a step, from what charge lights of the patches."""

import numpy as np
import pytest

from lartpc_ds.data.lit_shares import Cells, Reach
from lartpc_ds.exact.grid.patches import Axis
from lartpc_ds.exact.memory.lit_plan import LitBlock, LitPlan

BLOCKS = (
    LitBlock("stem", Reach(1, 2, 1, 2), 40.0, 400),
    LitBlock("layer1", Reach(9, 9, 9, 9), 30.0, 300),
    LitBlock("layer2", Reach(90, 90, 90, 90), 20.0, 200),
    LitBlock("head", None, 10.0, 100),
)


def plan(until: str, covered: int = 4) -> LitPlan:
    return LitPlan(Axis(128, 16), Axis(128, 16), until, BLOCKS, covered)


@pytest.mark.parametrize(
    ("until", "cost"),
    [
        ("layer1", 0.4 * 1.35 * 0.1 + 0.6),
        ("layer2", 0.4 * 1.35 * 0.1 + 0.3 * 1.35 * 0.4 + 0.3),
        ("never", 1.35 * (0.4 * 0.1 + 0.3 * 0.4 + 0.3 * 0.9)),  # the head has the share of the map before it
        ("auto", 0.4 * 1.35 * 0.1 + 0.3 * 1.35 * 0.4 + 0.3),
    ],
)
def test_blocks_on_patches_cost_their_share(until, cost):
    assert plan(until).cost([0.1, 0.4, 0.9]) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("until", "kept"), [("layer1", 40 + 600), ("never", 40 + 120 + 180 + 90), ("auto", 40 + 120 + 300)]
)
def test_blocks_on_patches_keep_their_share(until, kept):
    assert plan(until).kept_bytes([0.1, 0.4, 0.9]) == pytest.approx(kept)


def test_auto_is_the_cheapest_of_all_choices():
    for seed in range(50):
        shares = np.sort(np.random.default_rng(seed).random(3)).tolist()
        ways = [plan(name).cost(shares) for name in ("layer1", "layer2", "head", "never")]
        assert plan("auto").cost(shares) == pytest.approx(min(1.0, *ways))
    assert plan("auto", covered=1).cost([0.1, 0.1, 0.1]) == pytest.approx(plan("layer1").cost([0.1]))


def test_the_table_and_a_rank_choose_alike():
    lit = np.zeros((1, 128, 128), np.bool_)
    lit[0, 60, 60:70] = True
    shares = plan("auto").cut.shares(Cells.of_pixels(*np.nonzero(lit[0])))
    assert plan("auto").shares(lit) == shares[1:] and plan("auto").maps == ("stem", "layer1", "layer2")
    until = plan("auto").until_of(lit)
    assert until == "layer2", "a track lights all of the last map"
    assert plan("auto").cost(shares[1:]) == plan(until).cost(shares[1:]) < 0.5
