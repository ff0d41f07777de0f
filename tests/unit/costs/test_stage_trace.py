"""What a rank does and has, traced: against counts by hand, and the ways to run one network against each other."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from lartpc_ds.config import recipes
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Problem
from lartpc_ds.costs.rank_cost import Costs, cost
from lartpc_ds.costs.stage_trace import Partition, StageTrace, trace_stages
from lartpc_ds.costs.stragglers import late_share, slowest_delay_seconds
from lartpc_ds.costs.zero import states_of
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests.machine import BYTES_PER_SECOND, machine

pytestmark = pytest.mark.slow

PIXELS = 128 * 128
SIDE = 1024  # of the images
TILE = Candidate(Layout(rows=2))


def problem(
    model: nn.Module | None = None, image: tuple[int, int, int] = (3, SIDE, SIDE), precision: str = "bf16"
) -> Problem:
    config, ds = recipes.load("microboone-full", [f'train.ds_config="zero0_{precision}"'])

    def make() -> nn.Module:
        return build_model("resnet18", planes=3, num_classes=5) if model is None else model

    return Problem(config, ds, image, make)


def traced(candidate: Candidate, hardware: Hardware | None = None, ranks_per_node: int = 4) -> StageTrace:
    asked = problem()
    with torch.device("meta"):
        network = asked.make_model()
    plan = plan_tiles(network, candidate.layout, asked.image, lean_norm=candidate.memory.lean_norm)
    (stage,) = trace_stages(asked, candidate, hardware or machine(), ranks_per_node, Partition(plan, None, ()))
    return stage


@pytest.fixture(scope="module")
def plain() -> StageTrace:
    return traced(Candidate(Layout()))


@pytest.fixture(scope="module")
def tile() -> StageTrace:
    return traced(TILE)


class OneConvolution(nn.Module):
    """Of which everything can be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3, padding=1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.convolution(images)).mean((2, 3))


def test_a_convolution_by_hand() -> None:
    """Kept: the images and the sigmoid; at its backward the gradients of both sides besides."""
    asked = problem(image=(1, 128, 128), precision="fp32")
    asked = Problem(asked.config, asked.ds, asked.image, OneConvolution)
    with torch.device("meta"):
        plan = plan_tiles(OneConvolution(), Layout(), asked.image)
    (stage,) = trace_stages(asked, Candidate(Layout()), machine(), 1, Partition(plan, None, ()))
    images, maps = 4 * PIXELS, 4 * 8 * PIXELS
    assert images + 2 * maps <= stage.peak.activations <= images + 3.2 * maps
    assert stage.parameters == 72
    assert stage.exposed_seconds == 0 and stage.output_bytes == 0
    # 3 x 3 windows of 8 filters, twice an addition and a multiplication; the map is written once, pointwise work more
    assert stage.forward_seconds >= maps / BYTES_PER_SECOND
    assert stage.forward_seconds < stage.backward_seconds


def test_levers_and_tiles_save_what_they_are_for(plain: StageTrace, tile: StageTrace) -> None:
    recompute = traced(Candidate(Layout(), memory=MemoryConfig(recompute="block")))
    lean = traced(Candidate(Layout(), memory=MemoryConfig(lean_norm=True)))
    assert recompute.peak.activations < 0.7 * plain.peak.activations
    assert lean.peak.activations < 0.7 * plain.peak.activations
    assert 0.4 * plain.peak.activations < tile.peak.activations < 0.6 * plain.peak.activations
    # the last block is not run again
    assert plain.backward_seconds < recompute.backward_seconds < plain.backward_seconds + plain.forward_seconds
    assert recompute.forward_seconds == pytest.approx(plain.forward_seconds, rel=1e-3)
    assert plain.peak.halos == 0 < tile.peak.halos < 0.1 * tile.peak.activations


def test_messages_hide_behind_computation_where_a_machine_can(tile: StageTrace) -> None:
    alone = traced(TILE, machine().model_copy(update={"overlaps": False}))
    far = traced(TILE, machine(), ranks_per_node=1)
    assert 0 < tile.exposed_seconds < alone.exposed_seconds
    assert tile.exposed_seconds < far.exposed_seconds
    assert tile.forward_seconds == alone.forward_seconds == far.forward_seconds


def stages(pipe: int, accumulate: int, cuts: Sequence[str]) -> list[StageTrace]:
    asked = problem()
    with torch.device("meta"):
        network = asked.make_model()
    names = [name for name, _ in network.named_children()]
    bounds = (0, *(names.index(name) for name in cuts), len(names))
    plan = plan_tiles(network, Layout(), asked.image)
    candidate = Candidate(Layout(pipe=pipe), accumulate=accumulate)
    return trace_stages(asked, candidate, machine(), 4, Partition(plan, None, bounds))


def test_stages_share_the_work_and_early_ones_keep_more(plain: StageTrace) -> None:
    first, last = stages(2, 4, ["layer2_0"])
    alone, _ = stages(2, 1, ["layer2_0"])
    assert first.parameters + last.parameters == plain.parameters
    # DeepSpeed clones the images once and what a stage receives twice, each clone read and written
    clones = 2 * (3 * SIDE * SIDE * 4 + 2 * first.output_bytes) / BYTES_PER_SECOND
    assert first.forward_seconds + last.forward_seconds == pytest.approx(plain.forward_seconds + clones, rel=1e-3)
    assert first.peak.activations > 1.5 * alone.peak.activations
    # layer1 gives 64 channels of a quarter of the sides, in bf16
    assert first.output_bytes == 64 * (SIDE // 4) ** 2 * 2 and last.output_bytes == 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_shrink_with_ranks(stage: int) -> None:
    """In units of the weights, Adam with two numbers a weight; figures measured in tests/multirank/test_states.py."""
    ds = problem().ds
    unit = 4 * 10**6

    def kept(ranks: int, accumulate: int = 1) -> list[float]:
        candidate = Candidate(Layout(data=ranks), accumulate=accumulate, zero=stage)
        states = states_of(ds, candidate, 10**6, host=True)
        return [one / unit for one in (states.weights, states.optimizer, states.gradients_before, states.update)]

    expected = {
        0: ([1, 2, 0, 5], [1, 2, 0, 5], [1, 2, 1, 5]),
        1: ([1, 3, 0, 7], [1, 1.5, 0, 4], [1, 1.5, 1, 4]),
        2: ([1, 3, 0, 7], [1, 1.5, 0, 4], [1, 1.5, 0.5, 4]),
        3: ([1, 3, 1, 8], [1.5, 1.5, 0.5, 4], [1.5, 1.5, 0.5, 4]),
    }[stage]
    assert (kept(1), kept(2), kept(2, 2)) == expected


def test_a_step_is_put_together() -> None:
    asked, hardware, cost = problem(), machine(), Costs()  # which makes no trace twice
    one = cost(asked, Candidate(Layout()), hardware, 4)
    four = cost(asked, Candidate(Layout(data=4)), hardware, 4)
    several = cost(asked, Candidate(Layout(data=4), accumulate=2), hardware, 4)
    piped = cost(asked, Candidate(Layout(pipe=2), accumulate=2), hardware, 4)
    assert one.time.reduction == one.time.halo == 0 and one.time.bubble < 1e-8
    assert four.time.reduction > 0 and four.global_batch == 4
    assert four.memory.activations == one.memory.activations
    thrice = cost(asked, Candidate(Layout(data=4), accumulate=3), hardware, 4)
    passes = several.time.compute - four.time.compute  # weights are updated once
    assert 0 < passes < four.time.compute
    assert thrice.time.compute - several.time.compute == pytest.approx(passes, rel=1e-6)
    assert several.events_per_second > four.events_per_second  # one sum of gradients for two micro-batches
    assert piped.time.bubble > 0
    assert piped.time.compute < one.time.compute * 2


def test_a_step_waits_for_the_rank_that_is_delayed() -> None:
    asked, cost, four = problem(), Costs(), Candidate(Layout(data=4))
    prompt = cost(asked, four, machine(), 4)
    delayed = cost(asked, four, machine().model_copy(update={"delays_per_second": 0.1, "delay_seconds": 2.0}), 4)
    late = late_share(0.1, prompt.time.compute)
    assert prompt.time.delay == 0.0
    assert delayed.time.delay == slowest_delay_seconds(4, late, 2.0) > 0
    assert replace(delayed.time, delay=0.0) == prompt.time and delayed.memory == prompt.memory


def test_group_norms_are_in_float32_on_cuda_only() -> None:
    asked = problem()

    def make() -> nn.Module:
        return build_model("resnet18", planes=3, num_classes=5, norm="group")

    grouped = Problem(asked.config, asked.ds, asked.image, make)
    on_cuda = cost(grouped, Candidate(Layout()), machine(), 1)
    on_cpu = cost(grouped, Candidate(Layout()), machine().model_copy(update={"device": "cpu"}), 1)
    assert on_cuda.memory.activations > 1.2 * on_cpu.memory.activations
