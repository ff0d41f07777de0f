"""The search against trying everything, with a cost that is cheap to compute and known to the test only."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from lartpc_ds.advise.search.candidates import choices
from lartpc_ds.advise.search.search import CostOf, Plan, limit_bytes, search
from lartpc_ds.config import ds_config
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, Problem, TimeParts
from lartpc_ds.costs.zero import reduction_seconds
from lartpc_ds.errors import UserError
from tests.machine import GIB, machine

IMAGE = (3, 256, 512)


def problem(ds: str = "zero2_bf16", model: Callable[[], nn.Module] | None = None, **sections: Any) -> Problem:
    config = RunConfig.parse({"train": {"max_steps": 1}, **sections}, "test")
    return Problem(config, ds_config.read(ds), IMAGE, model or network)


def network() -> nn.Module:
    """Eight blocks with weights."""
    middle = {f"block{number}": nn.Conv2d(8, 8, 3, padding=1) for number in range(6)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4))
    return nn.Sequential(OrderedDict({"stem": nn.Conv2d(3, 8, 7, 2), **middle, "head": head}))


class Costs:
    """Of a network that keeps `event_gib` of a whole event and computes for one second."""

    def __init__(self, event_gib: float) -> None:
        self.event_gib = event_gib
        self.asked: list[Candidate] = []

    def __call__(self, problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> Cost:
        self.asked.append(candidate)
        layout, memory = candidate.layout, candidate.memory
        if memory.stream_strips > 1:
            raise UserError("batch norms need the whole map")
        ranks = layout.data * layout.tiles
        kept = (0.35 if memory.recompute == "block" else 1) * (0.6 if memory.lean_norm else 1)
        kept *= self.event_gib * candidate.batch / layout.tiles**0.95 * (1 + 0.4 * (layout.pipe > 1))
        seconds = (1.35 if memory.recompute == "block" else 1) * (1.02 if memory.lean_norm else 1)
        seconds *= candidate.batch * candidate.accumulate / layout.tiles**0.97 / layout.pipe
        seams = min(layout.rows - 1, 2) * 2 / layout.cols + min(layout.cols - 1, 2) / layout.rows
        waits = seconds * (layout.pipe - 1) / candidate.accumulate
        return Cost(
            MemoryParts(
                weights=GIB // (ranks if candidate.zero == 3 else 1),
                gradients=GIB // (ranks if candidate.zero >= 2 else 1),
                optimizer=0 if candidate.offload else 3 * GIB // ranks if candidate.zero else 2 * GIB,
                activations=int(kept * GIB),
                halos=int(seams * candidate.batch * 2**24),
                workspace=GIB // 2,
            ),
            TimeParts(
                seconds + 0.1 * candidate.offload,
                0.004 * candidate.accumulate * seams * (1 if layout.tiles <= ranks_per_node else 8),
                reduction_seconds(problem.ds, candidate, GIB // 4, hardware, ranks_per_node),
                waits,
            ),
            candidate.global_batch,
        )


def searched(costs: CostOf, devices: int, memory_gib: float, run: Problem | None = None, **options: Any) -> Plan:
    return search(run or problem(), machine(), devices, int(memory_gib * GIB), 4, cost=costs, **options)


@pytest.mark.parametrize(
    ("event_gib", "devices", "memory_gib"),
    [(20, 16, 40), (50, 16, 40), (50, 1, 24), (50, 8, 8), (300, 64, 16), (50, 6, 12), (2, 512, 40)],
)
def test_the_recommendation_is_as_fast_as_the_best_of_all(event_gib: float, devices: int, memory_gib: float) -> None:
    costs, run = Costs(event_gib), problem()
    plan = searched(costs, devices, memory_gib, run)
    asked = len(costs.asked)
    assert plan.recommended is not None and plan.recommended.exact and plan.recommended is plan.rows[0]
    assert plan.recommended.cost == costs(run, plan.recommended.candidate, machine(), 4)
    limit = limit_bytes(machine(), int(memory_gib * GIB))
    fastest = 0.0
    everything = choices(run, machine(), devices, 4).candidates
    for candidate in everything:
        if candidate.memory.stream_strips == 1:
            cost = costs(run, candidate, machine(), 4)
            fastest = max(fastest, cost.events_per_second if cost.memory.total <= limit else 0)
    assert plan.recommended.cost.memory.total <= limit
    assert plan.recommended.cost.events_per_second >= 0.95 * fastest
    assert asked < 60 < len(everything)


def test_what_is_as_fast_is_simple() -> None:
    plan = searched(Costs(5), 16, 80)
    assert plan.recommended is not None
    best = plan.recommended.candidate
    assert (best.layout.data, best.layout.tiles, best.layout.pipe) == (16, 1, 1)
    assert (best.memory.recompute, best.memory.lean_norm, best.offload) == ("none", False, False)


def test_short_memory_makes_levers_and_then_tiles() -> None:
    lean = searched(Costs(50), 16, 40).recommended
    tiled = searched(Costs(300), 16, 40).recommended
    assert lean is not None and lean.candidate.layout.tiles == 1 and lean.candidate.memory.lean_norm
    assert tiled is not None and tiled.candidate.layout.tiles > 1


def test_the_front_is_traced_and_has_nothing_better_and_smaller() -> None:
    plan = searched(Costs(50), 16, 40)
    points = [row for row in plan.rows if row.pareto]
    assert len(points) > 2 and all(row.exact and row.fits for row in points)
    for row in points:
        for other in plan.rows:
            if other.exact and other.fits and other.cost.memory.total < 0.9 * row.cost.memory.total:
                assert other.cost.events_per_second <= row.cost.events_per_second


def test_where_nothing_fits_the_smallest_is_traced() -> None:
    plan = searched(Costs(500), 2, 4)
    assert plan.recommended is None and not any(row.fits for row in plan.rows)
    assert plan.rows[0].exact and plan.rows[0].candidate.layout.tiles == 2
    assert plan.rows[0].cost.memory.total == min(row.cost.memory.total for row in plan.rows)


def test_a_global_batch_is_kept() -> None:
    plan = searched(Costs(20), 16, 40, global_batch=8)
    assert {row.cost.global_batch for row in plan.rows} == {8}
    assert all(row.candidate.global_batch == 8 for row in plan.rows)
    thin = replace(problem(model=NoBlocks), image=(3, 16, 16))
    with pytest.raises(UserError, match=r"--global-batch 5: no way to share 7.*layout\.data, which may be 7"):
        searched(Costs(20), 7, 40, run=thin, global_batch=5)


def test_without_time_something_traced_is_recommended_all_the_same() -> None:
    costs = Costs(50)
    plan = searched(costs, 16, 40, budget_seconds=0.0)
    assert plan.recommended is not None and plan.recommended.exact
    assert len(costs.asked) < 16


class NoBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 4, 3)


def test_every_axis_that_is_left_out_is_explained() -> None:
    refused = "\n".join(searched(Costs(20), 6, 40).refused)
    assert "streaming is not offered: batch norms need the whole map" in refused
    assert "3 or 6 tiles an event are not offered: with 4 devices a machine" in refused
    assert "ZeRO-2 and ZeRO-3 do not go with pipeline stages" in refused
    refused = "\n".join(searched(Costs(20), 64, 40).refused)
    assert "more than 8 pipeline stages are not offered" in refused
    refused = "\n".join(searched(Costs(20), 4, 40, run=problem(model=NoBlocks)).refused)
    assert "pipeline stages, block recomputation and streaming are not offered: model NoBlocks has no" in refused


def test_a_network_that_cannot_be_cut_into_tiles_is_planned_without() -> None:
    costs = Costs(20)

    def without_tiles(problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> Cost:
        if candidate.layout.tiles > 1:
            raise UserError("layer fold: no proven form on tiles")
        return costs(problem, candidate, hardware, ranks_per_node)

    plan = searched(without_tiles, 8, 40)
    assert plan.recommended is not None and all(row.candidate.layout.tiles == 1 for row in plan.rows)
    assert "tiles are not offered: layer fold: no proven form on tiles" in plan.refused


def test_cuts_are_written_out_by_name() -> None:
    plan = searched(Costs(20), 4, 40)
    piped = [row.candidate for row in plan.rows if row.candidate.layout.pipe == 2]
    assert piped and all(len(one.cuts) == 1 and "block" in one.cuts[0] for one in piped)
