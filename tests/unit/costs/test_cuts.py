"""The cuts against trying every one of them."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lartpc_ds.costs.cuts import BlockCost, choose_bounds, stage_bytes, stage_ns
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Bounds

FEW = st.integers(0, 6)


@st.composite
def models(draw: st.DrawFn) -> list[BlockCost]:
    number, size = draw(st.integers(1, 8)), draw(FEW)
    costs = []
    for position in range(number):
        output = draw(FEW)
        flags = draw(st.booleans()), draw(st.booleans())
        cost = BlockCost(f"b{position}", draw(FEW), draw(FEW), draw(FEW), size, output, *flags, draw(FEW), draw(FEW), 1)
        costs.append(cost)
        size = output
    return costs


def every_cut(costs: list[BlockCost], stages: int) -> list[Bounds]:
    """All with a parameter in each stage."""
    places = combinations(range(1, len(costs)), stages - 1)
    found = [(0, *inner, len(costs)) for inner in places]
    return [bounds for bounds in found if all(sum(c.parameters for c in costs[a:b]) for a, b in pairwise(bounds))]


def slowest(costs: list[BlockCost], bounds: Bounds) -> int:
    return max(stage_ns(costs, start, stop) for start, stop in pairwise(bounds))


def fullest(costs: list[BlockCost], bounds: Bounds, micro_batches: int) -> int:
    stages = len(bounds) - 1
    copies = [min(stages - stage, micro_batches) for stage in range(stages)]
    return max(stage_bytes(costs, *ends, many) for ends, many in zip(pairwise(bounds), copies, strict=True))


@given(models(), st.integers(1, 5), st.integers(1, 4), st.none() | st.integers(0, 60))
def test_balanced_is_the_best_of_all_cuts(
    costs: list[BlockCost], stages: int, micro_batches: int, limit: int | None
) -> None:
    possible = every_cut(costs, stages)
    assume(possible)
    fitting = [one for one in possible if limit is None or fullest(costs, one, micro_batches) <= limit]
    if not fitting:
        with pytest.raises(UserError, match=r"layout\.pipe = .*GiB too much"):
            choose_bounds("balanced", costs, stages, micro_batches, limit)
        return
    found = choose_bounds("balanced", costs, stages, micro_batches, limit)
    assert found in fitting
    best = min((slowest(costs, one), fullest(costs, one, micro_batches)) for one in fitting)
    assert (slowest(costs, found), fullest(costs, found, micro_batches)) == best


@given(models(), st.integers(1, 5), st.sampled_from(["parameters", "uniform"]))
def test_parameters_and_uniform_are_the_most_even(costs: list[BlockCost], stages: int, cuts: str) -> None:
    possible = every_cut(costs, stages)
    assume(possible)

    def spread(bounds: Bounds) -> tuple[int, int]:
        counted = [1 if cuts == "uniform" else cost.parameters for cost in costs]
        sums = [sum(counted[start:stop]) for start, stop in pairwise(bounds)]
        return max(sums), -min(sums)

    assert spread(choose_bounds(cuts, costs, stages, 1)) == min(map(spread, possible))


def blocks(*parameters: int) -> list[BlockCost]:
    return [BlockCost(f"b{number}", many, 0, 0, 0, 0, True, True, 0, 1, 2) for number, many in enumerate(parameters)]


def test_named_cuts() -> None:
    assert choose_bounds(("b2", "b3"), blocks(1, 1, 1, 1), 3, 1) == (0, 2, 3, 4)


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (("b9",), ["b9", "blocks: b1, b2, b3"]),
        (("b0",), ["b0", "begins at b0 anyway"]),
        (("b3", "b1"), ["in the order", "b1, b2, b3"]),
        (("b1", "b1"), ["each once"]),
        (("b2", "b3"), ["the stage of b2 has no parameters"]),
    ],
)
def test_impossible_names(cuts: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        choose_bounds(cuts, blocks(1, 1, 0, 1), len(cuts) + 1, 1)
    assert str(error.value).startswith(f"layout.cuts = {list(cuts)}")
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("cuts", ["balanced", "parameters", "uniform"])
def test_more_stages_than_blocks_with_parameters(cuts: str) -> None:
    assert choose_bounds(cuts, blocks(1, 0, 0, 1), 2, 1) in [(0, 1, 4), (0, 2, 4), (0, 3, 4)]
    with pytest.raises(UserError, match=r"layout\.pipe = 3.*the model has 2: b0, b3; set layout\.pipe to 2"):
        choose_bounds(cuts, blocks(1, 0, 0, 1), 3, 1)


def test_an_early_stage_keeps_more_micro_batches() -> None:
    """Time alone would cut in the middle; four copies of the first blocks' maps do not fit."""
    costs = [replace(one, saved_bytes=10 - number) for number, one in enumerate(blocks(*[1] * 8))]
    assert choose_bounds("balanced", costs, 2, 4) == (0, 4, 8)
    assert choose_bounds("balanced", costs, 2, 4, limit_bytes=60) == (0, 3, 8)
    assert choose_bounds("balanced", costs, 2, 1, limit_bytes=60) == (0, 4, 8)


def test_what_a_stage_keeps() -> None:
    """By hand: 2 copies of what is saved, of the received map beside its clone, and of a sent map nobody saved."""
    first = BlockCost("a", 1, 100, 30, 7, 5, True, True, 11, 1, 2)
    second = BlockCost("b", 1, 200, 40, 5, 6, True, False, 13, 1, 2)
    third = BlockCost("c", 1, 300, 50, 6, 1, True, False, 17, 1, 2)
    costs = [first, second, third]
    assert stage_bytes(costs, 0, 1, 2) == 2 * (30 + 7) + 5 + 100 + 11
    assert stage_bytes(costs, 1, 2, 2) == 2 * (40 + 5 + 5 + 6) + 5 + 6 + 200 + 13
    assert stage_bytes(costs, 2, 3, 1) == (50 + 6) + 6 + 300 + 17
    assert stage_bytes(costs, 0, 3, 1) == (30 + 40 + 50 + 7) + 600 + 17


def test_what_later_blocks_kept_is_gone_when_an_early_block_is_at_its_peak() -> None:
    early = BlockCost("early", 1, 0, 30, 7, 5, False, True, 100, 1, 1)
    late = BlockCost("late", 1, 0, 60, 5, 6, True, True, 10, 1, 1)
    assert stage_bytes([early, late], 0, 2, 1) == 7 + 30 + 100  # and not 7 + 30 + 60 + 100
    assert stage_bytes([early, late], 0, 2, 3) == 2 * (7 + 30 + 60) + 7 + 30 + 100
    assert stage_bytes([early, replace(late, transient_bytes=80)], 0, 2, 1) == 7 + 30 + 60 + 80
