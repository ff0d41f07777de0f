"""A U-Net on dense targets with a weighted loss, on tiles against plain PyTorch on one device.

The same parameters after 3 SGD steps, the same loss, and the same counted pixels; sizes that no tile divides.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import complete
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Layout
from lartpc_ds.training.engine import Engine, finish, start
from lartpc_ds.training.losses import Loss
from tests.ranks import run_ranks
from tests.unet import unet

STEPS, BATCH, CLASSES, TOLERANCE = 3, 2, 3, 1e-6
IMAGE = (2, 53, 71)
SGD = 'ds.optimizer={type="SGD",params={lr=0.01,momentum=0.9}}'
WEIGHTS = (0.2, 1.0, 5.0)


def weighted_loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy divided by the sum of the weights of the pixels."""
    weights = torch.tensor(WEIGHTS)
    counted = targets.clamp(min=0)
    per_pixel = torch.where(targets < 0, 0.0, weights[counted])
    return (F.cross_entropy(outputs, counted, reduction="none") * per_pixel).sum(), per_pixel.sum()


def model() -> nn.Module:
    torch.manual_seed(3)
    return unet(IMAGE[0], CLASSES)


def batches() -> list[tuple[Tensor, Tensor]]:
    """The classes of the pixels crowd together, so that tiles have different weights; some pixels are not counted."""
    generator = torch.Generator().manual_seed(5)
    images = [torch.randn(BATCH, *IMAGE, generator=generator) for _ in range(STEPS)]
    slope = torch.linspace(0, 4, IMAGE[1])[:, None] + torch.linspace(0, 2, IMAGE[2])
    return [(x, (x[:, 0] + slope).long().clamp(-1, CLASSES) % (CLASSES + 1) - 1) for x in images]


def reference() -> tuple[dict[str, Tensor], list[float], list[tuple[int, int]]]:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses, counts = [], []
    for images, targets in batches():
        optimizer.zero_grad()
        outputs = net(images)
        total, weight = weighted_loss(outputs, targets)
        (total / weight).backward()
        optimizer.step()
        losses.append(float((total / weight).detach()))
        counts.append((int((outputs.argmax(1) == targets).sum()), int((targets >= 0).sum())))
    pairs = zip(net.parameters(), model().parameters(), strict=True)
    moved = max(float((new - old).detach().abs().max()) for new, old in pairs)
    assert moved > 1000 * TOLERANCE, "a tolerance says something only beside what the steps changed"
    return net.state_dict(), losses, counts


def engine_run(
    ds: dict[str, Any], layout: Layout, gather_at: str
) -> tuple[dict[str, Tensor], list[float], list[tuple[int, int]]]:
    groups, device = start(layout, timeout_minutes=5)
    net = model()
    plan = plan_tiles(net, layout, IMAGE, gather_at)
    tiles = groups.tiles()
    convert(net, plan, tiles)
    (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)
    whole = plan.output is None
    assert whole == (gather_at != "never")
    loss = Loss(weighted_loss, "pixels", tiles.group, plan.tile(tiles.row, tiles.col) if whole else None)
    engine = Engine(net, ds, groups, device, loss, tiles)
    losses, counts = [], []
    for images, targets in batches():
        mine = images[..., top:bottom, left:right], targets[..., top:bottom, left:right]
        result = engine.step([mine])
        rows = groups.gather_rows([result.loss_sum, result.correct, result.scored, result.events], device)
        loss_sum, correct, scored, events = rows.sum(0).tolist()
        assert events == BATCH
        losses.append(loss_sum / BATCH)
        counts.append((int(correct), int(scored)))
    weights = engine.full_state_dict()
    finish()
    return weights, losses, counts


@pytest.mark.parametrize(("grid", "stage"), [((2, 1), 0), ((1, 2), 3), ((2, 2), 2), ((2, 2), 3)])
def test_same_parameters_as_plain_torch(grid: tuple[int, int], stage: int) -> None:
    assert_same(Layout(rows=grid[0], cols=grid[1]), stage, "never")


def test_one_rank_is_plain_torch() -> None:
    assert_same(Layout(), 2, "never")


def test_whole_maps_are_cut_where_the_targets_are() -> None:
    """From `head` on every rank has the whole map, but the targets of its tile only."""
    assert_same(Layout(rows=2), 2, "head")


def assert_same(layout: Layout, stage: int, gather_at: str) -> None:
    settings = [
        f'train.ds_config="zero{stage}_fp32"',
        SGD,
        'ds.scheduler={type="constant",params={}}',
        "ds.gradient_clipping=0.0",
        'train.lr_scaling="none"',
        f"data.batch={BATCH}",
    ]
    config, ds = recipes.load("quickstart", settings)
    weights, losses, counts = reference()
    run = run_ranks(layout.world_size, engine_run, complete(ds, config, layout, STEPS), layout, gather_at)
    for found, found_losses, found_counts in run:
        assert found_losses == pytest.approx(losses, abs=TOLERANCE)
        # a pixel whose two best scores are equal but for rounding may be called either
        assert np.allclose(found_counts, counts, atol=1)
        for name, value in weights.items():
            assert float((found[name] - value).abs().max()) <= TOLERANCE, name
