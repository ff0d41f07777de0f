"""Levers together, through the one place that applies them: still the numbers of the plain network."""

import copy

import pytest
from torch import nn

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout
from tests.strip_parity import IMAGE, TOLERANCE, difference, network
from tests.tile_parity import image, whole

pytestmark = pytest.mark.slow

MIXTURES = [
    MemoryConfig(stream_strips=3, lean_norm=True),
    MemoryConfig(stream_strips=3, recompute="block"),
    MemoryConfig(stream_strips=5, lean_norm=True, recompute="block"),
]


def _applied(model: nn.Module, memory: MemoryConfig) -> nn.Module:
    model = copy.deepcopy(model)
    plan = plan_tiles(model, Layout(), IMAGE, lean_norm=memory.lean_norm)
    strips = plan_strips(model, memory.stream_strips, "layer2_0", IMAGE)
    apply(model, memory, plan, Tiles(1, 1, Alone(), Alone(), Alone()), strips)
    return model


@pytest.mark.parametrize("memory", MIXTURES, ids=str)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_strips_with_other_levers_are_a_plain_run(name: str, memory: MemoryConfig) -> None:
    model, x = network(name), image((2, *IMAGE))
    assert difference(whole(_applied(model, memory), x), whole(model, x)) <= TOLERANCE
