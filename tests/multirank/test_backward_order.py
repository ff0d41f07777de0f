"""ZeRO 1 to 3 on tiles of which only some need a padded copy of their map: the losses of one rank, and no rank waits.

ZeRO 2 and 3 reduce a weight's gradient inside the backward pass, as soon as a bucket is full; here a bucket is full at
once. A halo that comes before a reduction on one rank and after it on the other is a deadlock, on gloo and on nccl.
"""

from typing import Any

import pytest
import torch
from torch import nn

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import complete
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout
from lartpc_ds.training.engine import Engine, finish, start
from tests.ranks import run_ranks

STEPS, CLASSES = 3, 3
IMAGE = (2, 53, 41)


def block(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU())


def model() -> nn.Module:
    """Every way in which one rank may pad its tile and its neighbour not, with weights before and after."""
    torch.manual_seed(3)
    return nn.Sequential(
        block(nn.Conv2d(2, 4, 3, padding=1, bias=False)),
        block(nn.Conv2d(4, 4, 2)),  # only the first of two tiles needs a row of the other
        block(nn.Conv2d(4, 4, 4, padding=1), nn.BatchNorm2d(4)),
        block(nn.Conv2d(4, 6, 3, stride=2)),
        block(nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1), nn.AvgPool2d(3, 2, padding=1)),
        block(nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.MaxPool2d(2, 1)),
        block(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=2, dilation=2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
    )


def losses_on(ds: dict[str, Any], layout: Layout, memory: MemoryConfig) -> list[float]:
    groups, device = start(layout, timeout_minutes=1)
    net, tiles = model(), groups.tiles()
    plan = plan_tiles(net, layout, IMAGE, "never", lean_norm=memory.lean_norm)
    apply(net, memory, plan, tiles)
    engine = Engine(net, ds, groups, device, tiles=tiles)
    (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)
    losses = []
    for step in range(STEPS):
        images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(step))
        labels = torch.tensor([step % CLASSES, (step + 1) % CLASSES])
        result = engine.step([(images[:, :, top:bottom, left:right], labels)])
        sums = groups.gather_rows([result.loss_sum, result.events], device).sum(0)
        losses.append(float(sums[0] / sums[1]))
    finish()
    return losses


def run(stage: int, layout: Layout, memory: MemoryConfig) -> list[float]:
    settings = [
        f'train.ds_config="zero{stage}_fp32"',
        'ds.optimizer={type="SGD",params={lr=0.1}}',
        'ds.scheduler={type="constant",params={}}',
        "ds.gradient_clipping=0.0",
        'train.lr_scaling="none"',
        "data.batch=2",
        *(["ds.zero_optimization.reduce_bucket_size=100"] if stage else []),
    ]
    config, ds = recipes.load("quickstart", settings)
    everybody = run_ranks(
        layout.world_size, losses_on, complete(ds, config, layout, STEPS), layout, memory, timeout_seconds=90
    )
    assert all(losses == everybody[0] for losses in everybody)
    return everybody[0]


@pytest.fixture(scope="module")
def one_rank() -> list[float]:
    return run(0, Layout(), MemoryConfig())


@pytest.mark.parametrize(
    ("stage", "layout", "memory"),
    [
        (1, Layout(rows=2), MemoryConfig()),
        (2, Layout(rows=2), MemoryConfig()),
        (3, Layout(rows=2), MemoryConfig()),
        (2, Layout(rows=2, cols=2), MemoryConfig()),
        (3, Layout(cols=2), MemoryConfig(recompute="block", lean_norm=True)),
    ],
    ids=str,
)
def test_ranks_that_pad_and_ranks_that_do_not(
    stage: int, layout: Layout, memory: MemoryConfig, one_rank: list[float]
) -> None:
    losses = run(stage, layout, memory)
    assert max(one_rank) - min(one_rank) > 0.01, "the steps must differ for this to say much"
    assert max(abs(a - b) for a, b in zip(losses, one_rank, strict=True)) <= 1e-5
