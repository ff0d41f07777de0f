"""Twenty steps of ResNet-18 with BatchNorm: one rank against tiles and data, ZeRO 0 to 3, and without DeepSpeed.

Plain SGD at a small learning rate: Adam, momentum or larger rates would blow rounding up. The whole first loss is the
scale. With BatchNorm, the one-rank reference of `data = 2` accumulates two micro-batches.
"""

from typing import Any

import pytest
import torch
from torch import nn

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import complete
from lartpc_ds.exact.grid.groups import make_groups
from lartpc_ds.exact.spatialize import convert, plan_tiles, spatialize
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from lartpc_ds.training.engine import Engine, finish, start
from tests.ranks import run_ranks

STEPS, CLASSES, LEARNING_RATE = 20, 5, 1e-3
IMAGE = (3, 324, 567)
SETTINGS = [
    'ds.optimizer={type="SGD",params={lr=0.001}}',
    'ds.scheduler={type="constant",params={}}',
    "ds.gradient_clipping=0.0",
    'train.lr_scaling="none"',
    "data.batch=1",
]


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return build_model("resnet18", planes=IMAGE[0], num_classes=CLASSES, width=4).to(dtype)


def event(step: int, number: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """A sparse image, mostly zero as whole events are, and its label."""
    generator = torch.Generator().manual_seed(100 * step + number)
    charge = torch.rand(1, *IMAGE, generator=generator, dtype=torch.float64)
    image = torch.where(charge > 0.97, 30 * charge, 0.0).to(dtype)
    return image, torch.tensor([(step + number) % CLASSES])


def tile_of(image: torch.Tensor, tile: tuple[tuple[int, int], tuple[int, int]]) -> torch.Tensor:
    (top, bottom), (left, right) = tile
    return image[:, :, top:bottom, left:right]


def losses_of_engine(ds: dict[str, Any], layout: Layout) -> list[float]:
    groups, device = start(layout, timeout_minutes=5)
    plan, net = plan_tiles(model(), layout, IMAGE), model()
    tiles = groups.tiles()
    engine = Engine(convert(net, plan, tiles), ds, groups, device, tiles=tiles)
    tile = plan.tile(tiles.row, tiles.col)
    losses = []
    for step in range(STEPS):
        numbers = [part * layout.data + groups.data_rank for part in range(engine.micro_steps)]
        images = [event(step, number) for number in numbers]
        result = engine.step((tile_of(image, tile), label) for image, label in images)
        sums = groups.gather_rows([result.loss_sum, result.events], device).sum(0)
        losses.append(float(sums[0] / sums[1]))
    finish()
    return losses


def engine_losses(stage: int, layout: Layout, accumulate: int) -> list[float]:
    settings = [*SETTINGS, f'train.ds_config="zero{stage}_fp32"', f"train.accumulate={accumulate}"]
    config, ds = recipes.load("quickstart", settings)
    everybody = run_ranks(
        layout.world_size, losses_of_engine, complete(ds, config, layout, STEPS), layout, timeout_seconds=300
    )
    assert all(losses == everybody[0] for losses in everybody)
    return everybody[0]


@pytest.fixture(scope="module")
def one_rank() -> dict[int, list[float]]:
    """Losses by accumulated micro-batches; ZeRO-0."""
    return {accumulate: engine_losses(0, Layout(), accumulate) for accumulate in (1, 2)}


@pytest.mark.parametrize(
    ("stage", "layout"),
    [
        (0, Layout(data=2, rows=2)),
        (1, Layout(rows=2, cols=2)),
        (2, Layout(data=2, rows=2)),
        (2, Layout(rows=2)),
        (3, Layout(data=2, rows=2)),
        (3, Layout(rows=2, cols=2)),
    ],
    ids=str,
)
def test_losses_agree_with_one_rank(stage: int, layout: Layout, one_rank: dict[int, list[float]]) -> None:
    expected = one_rank[layout.data]
    losses = engine_losses(stage, layout, accumulate=1)
    assert len(losses) == STEPS and max(expected) - min(expected) > 0.1, "the steps must differ for this to say much"
    difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    assert difference <= 1e-4 * expected[0], difference


def losses_in_float64(layout: Layout) -> list[float]:
    """A user's own loop: no DeepSpeed, gradients averaged over all ranks."""
    net = model(torch.float64)
    groups = make_groups(layout)
    tile = plan_tiles(net, layout, IMAGE).tile(*layout.coordinates(groups.rank)[2:])
    spatialize(net, layout, groups, IMAGE)
    losses = []
    for step in range(STEPS):
        image, label = event(step, groups.data_rank, torch.float64)
        loss = nn.functional.cross_entropy(net(tile_of(image, tile)), label)
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                assert parameter.grad is not None
                torch.distributed.all_reduce(parameter.grad)
                parameter -= LEARNING_RATE * parameter.grad / layout.world_size
                parameter.grad = None
        mean = groups.gather_rows([loss.item()], torch.device("cpu")).mean()
        losses.append(float(mean))
    return losses


def accumulated_in_float64(layout: Layout) -> list[float]:
    """The same on one rank, the data ranks' events one after another."""
    net = model(torch.float64)
    losses = []
    for step in range(STEPS):
        total = 0.0
        for number in range(layout.data):
            image, label = event(step, number, torch.float64)
            loss = nn.functional.cross_entropy(net(image), label) / layout.data
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter in net.parameters():
                assert parameter.grad is not None
                parameter -= LEARNING_RATE * parameter.grad
                parameter.grad = None
        losses.append(total)
    return losses


@pytest.mark.parametrize("layout", [Layout(rows=2, cols=2), Layout(data=2, rows=2)], ids=str)
def test_a_plain_loop_in_float64(layout: Layout) -> None:
    (expected,) = run_ranks(1, accumulated_in_float64, layout)
    for losses in run_ranks(layout.world_size, losses_in_float64, layout, timeout_seconds=300):
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-8
