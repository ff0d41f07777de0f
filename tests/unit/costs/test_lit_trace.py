"""What a step takes that computes only what is lit: the trace against the same step on real tensors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lartpc_ds.config import ds_config
from lartpc_ds.config.run import MemoryConfig, RunConfig
from lartpc_ds.costs.meter import Meter, Peak
from lartpc_ds.costs.problem import Candidate, LitEvents, Problem
from lartpc_ds.costs.rank_cost import Costs, cost
from lartpc_ds.costs.stage_trace import Partition, StageTrace, trace_stages
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.patches import Axis, Bits, Patches
from lartpc_ds.exact.grid.readings import Bags, EventReading, PatchReading, PixelReading, Reading, TapReading
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout
from tests.lit_parity import ALONE
from tests.machine import machine

pytestmark = pytest.mark.slow

IMAGE = (3, 512, 768)


def block(planes: int, channels: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(planes, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


def network() -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(64, 4))
    return nn.Sequential(block(3, 32, 2), nn.MaxPool2d(3, 2, 1), block(32, 64, 1), block(64, 64, 2), head)


def line(length: int) -> Bits:
    lit = np.zeros((1, *IMAGE[1:]), np.bool_)
    lit[0, np.arange(length) + 20, np.arange(length) + 200] = True
    return lit


def problem(median: Bits, brightest: Bits) -> Problem:
    with torch.device("meta"):
        plan = plan_lit(network(), 32, "never", IMAGE)
    config = RunConfig.parse({"train": {"max_steps": 1}}, "test")
    lit = LitEvents(plan, median, brightest, "two lines")
    return Problem(config, ds_config.read("zero0_fp32"), IMAGE, network, lit)


def levers(lean: bool = False, recompute: str = "none") -> MemoryConfig:
    return MemoryConfig.model_validate({"lit_block": 32, "lean_norm": lean, "recompute": recompute})


def traced(memory: MemoryConfig, pixels: Bits, batch: int = 1) -> StageTrace:
    asked, candidate = problem(pixels, pixels), Candidate(Layout(), batch, memory=memory)
    with torch.device("meta"):
        tiles = plan_tiles(network(), Layout(), IMAGE, lean_norm=memory.lean_norm)
    (stage,) = trace_stages(asked, candidate, machine(), 1, Partition(tiles, None, ()), pixels)
    return stage


def measured(memory: MemoryConfig, pixels: Bits, monkeypatch: pytest.MonkeyPatch) -> Peak:
    """The same meter on a real step; it is told of the lists, which numpy makes."""
    model, meter, listed = network(), Meter(), Bags.of

    def listed_and_held(rows: Any, sizes: Any) -> Bags:
        bags = listed(rows, sizes)
        meter.hold(*bags)
        return bags

    monkeypatch.setattr("lartpc_ds.costs.meter.FakeTensor", torch.Tensor)
    monkeypatch.setattr(Bags, "of", listed_and_held)
    plan = problem(pixels, pixels).lit
    assert plan is not None
    apply(model, memory, plan_tiles(model, Layout(), IMAGE, lean_norm=memory.lean_norm), ALONE, None, plan.plan)
    images = torch.from_numpy(pixels[:, None].astype(np.float32)).expand(1, *IMAGE).to_sparse()
    meter.hold(model)
    with meter:
        torch.autograd.backward(F.cross_entropy(model(images), torch.zeros(1, dtype=torch.long)))
    monkeypatch.undo()
    return meter.peak


@pytest.mark.parametrize("memory", [levers(), levers(lean=True), levers(recompute="block")], ids=str)
def test_a_traced_peak_is_that_of_a_real_step(memory: MemoryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, found = measured(memory, line(450), monkeypatch), traced(memory, line(450)).peak
    assert found.weights == real.weights
    assert found.activations == pytest.approx(real.activations, rel=0.03)


def test_lists_without_values_are_as_long_as_those_that_a_run_makes() -> None:
    source = Patches(line(150), Axis(IMAGE[1], 32), Axis(IMAGE[2], 32))
    target = Patches(line(450), Axis(IMAGE[1], 32), Axis(IMAGE[2], 32))
    around = range(-1, 33)
    readings: list[Reading] = [
        PixelReading(source, source, around, around),
        TapReading(source, source, range(32), range(32)),
        PatchReading.onto(source, target),
        PatchReading.spread(source),
        EventReading(source),
    ]
    for reading in readings:
        for real, imagined in ((reading.bags, reading.traced_bags), (reading.home, reading.traced_home)):
            assert imagined.offsets.shape == real.offsets.shape
            assert 0.9 * len(imagined.rows) <= len(real.rows) <= len(imagined.rows)


def test_the_memory_is_that_of_the_brightest_event_and_the_time_that_of_the_median() -> None:
    dark, bright = line(50), line(450)
    candidate = Candidate(Layout(), memory=levers())
    both, low, high = (
        cost(problem(*events), candidate, machine(), 1) for events in ((dark, bright), (dark, dark), (bright, bright))
    )
    assert low.memory.activations < high.memory.activations == both.memory.activations
    assert low.time == both.time and both.time.total < high.time.total == both.brightest_seconds
    assert both.events_per_second == low.events_per_second


def test_more_of_the_image_costs_more_and_a_dense_step_has_no_spread() -> None:
    costs, asked = Costs(), problem(line(50), line(450))
    lit, whole = (
        costs(asked, Candidate(Layout(), memory=memory), machine(), 1) for memory in (levers(), MemoryConfig())
    )
    assert whole.brightest_seconds is None and lit.brightest_seconds is not None
    assert lit.time.total < lit.brightest_seconds < whole.time.total
    assert lit.memory.total < whole.memory.total
    one, four = (traced(levers(), line(150), batch).peak.activations for batch in (1, 4))
    assert 3 * one < four < 4.5 * one
