"""Pipeline stages against one rank that accumulates the same micro-batches in plain PyTorch.

Weights, losses, running statistics and evaluation outputs after three steps of SGD with momentum and clipping, on
images of odd sizes. float32, because DeepSpeed reduces no float64 gradients on a CPU; so the tolerance is twice what
rounding leaves after three steps (measured: 1.1e-6 at most), and every parameter moves by 80 times as much at least.
`tests/unit/exact/test_pipeline.py` has the stages' gradients in float64.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import complete
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.models.build import build_model
from lartpc_ds.training.engine import finish, start
from lartpc_ds.training.stage_engine import StageEngine
from tests.ranks import run_ranks

STEPS, MICRO_STEPS, CLASSES, CLIP, TOLERANCE = 3, 4, 5, 0.5, 2e-6
IMAGE = (3, 45, 67)
BOUNDS = {1: (0, 11), 2: (0, 4, 11), 3: (0, 2, 6, 11)}


def model(norm: str = "batch") -> nn.Module:
    torch.manual_seed(3)
    return build_model("resnet18", planes=IMAGE[0], num_classes=CLASSES, width=4, norm=norm)


def micro_batch(step: int, part: int, data_rank: int, data: int) -> tuple[Tensor, Tensor]:
    """Two events."""
    number = (step * MICRO_STEPS + part) * data + data_rank
    generator = torch.Generator().manual_seed(number)
    return torch.rand(2, *IMAGE, generator=generator), torch.tensor([number % CLASSES, (number + 2) % CLASSES])


class Outcome:
    """What a run leaves: losses, the whole state, and outputs in evaluation."""

    def __init__(self, losses: list[float], state: dict[str, Tensor], outputs: Tensor | None) -> None:
        self.losses, self.state, self.outputs = losses, state, outputs


def reference(data: int, together: bool = False) -> Outcome:
    """One rank; each data rank's running statistics see its own events only, so there is a copy of buffers for each.

    With `together`, the events of a micro-step of all data ranks are one batch, as `norm_scope = "all"` has them.
    """
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    buffers = [{name: value.clone() for name, value in net.named_buffers()} for _ in range(data)]
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for part in range(MICRO_STEPS):
            for data_rank in range(1 if together else data):
                mine = dict(net.named_buffers())
                for name, value in buffers[data_rank].items():
                    mine[name].copy_(value)
                whose = range(data) if together else [data_rank]
                events = [micro_batch(step, part, one, data) for one in whose]
                images, labels = (torch.cat(values) for values in zip(*events, strict=True))
                loss = nn.functional.cross_entropy(net(images), labels)
                (loss / MICRO_STEPS / (1 if together else data)).backward()
                total += loss.item()
                buffers[data_rank] = {name: value.clone() for name, value in net.named_buffers()}
        assert nn.utils.clip_grad_norm_(net.parameters(), CLIP) > CLIP, "the test must clip"
        optimizer.step()
        losses.append(total / MICRO_STEPS / (1 if together else data))
    for name, value in net.named_buffers():
        stacked = torch.stack([one[name].double() for one in buffers[: 1 if together else data]])
        value.copy_(stacked.mean(0))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        outputs = net.eval()(micro_batch(0, 0, 0, data)[0])
    return Outcome(losses, state, outputs)


def staged(
    ds: dict[str, Any],
    layout: Layout,
    bounds: Bounds,
    norm_scope: str = "tiles",
    memory: MemoryConfig = MemoryConfig(),  # noqa: B008 it is frozen
) -> Outcome:
    groups, device = start(layout, timeout_minutes=5)
    at = layout.coordinates(groups.rank)
    net = model()
    plan = plan_tiles(net, layout, IMAGE, norm_scope=norm_scope, lean_norm=memory.lean_norm)
    tiles = groups.tiles(norm_scope=norm_scope)
    apply(net, memory, plan, tiles)
    engine = StageEngine(net, bounds, ds, groups, device, tiles=tiles)
    (top, bottom), (left, right) = plan.tile(at.row, at.col)

    def tile(images: Tensor) -> Tensor:
        return images[:, :, top:bottom, left:right] if at.pipe == 0 else torch.empty(2, 0, 0, 0)

    losses = []
    for step in range(STEPS):
        batches = [micro_batch(step, part, at.data, layout.data) for part in range(engine.micro_steps)]
        result = engine.step((tile(images), labels) for images, labels in batches)
        sums = groups.gather_rows([result.loss_sum, result.events], device).sum(0)
        losses.append(float(sums[0] / sums[1]))
        assert float(sums[1]) == 2 * MICRO_STEPS * layout.data
        if step == 1:  # an evaluation in between, which may change nothing
            engine.predict(tile(batches[0][0]))
    state = engine.full_state_dict()
    for value in engine.module.buffers():
        if value.is_floating_point():
            torch.distributed.all_reduce(value, group=groups.data)
            value /= layout.data
    outputs = engine.predict(tile(micro_batch(0, 0, 0, layout.data)[0]))
    assert (outputs is None) == (at.pipe < layout.pipe - 1)
    finish()
    return Outcome(losses, state, outputs)


def ds_of(stage: int, layout: Layout, *more: str) -> dict[str, Any]:
    config, ds = recipes.load(
        "quickstart",
        [
            f'train.ds_config="zero{stage}_fp32"',
            'ds.optimizer={type="SGD",params={lr=0.05,momentum=0.9}}',
            'ds.scheduler={type="constant",params={}}',
            f"ds.gradient_clipping={CLIP}",
            'train.lr_scaling="none"',
            "data.batch=2",
            f"train.accumulate={MICRO_STEPS}",
            *more,
        ],
    )
    return complete(ds, config, layout, STEPS)


@pytest.fixture(scope="module")
def one_rank() -> dict[int, Outcome]:
    return {data: reference(data) for data in (1, 2)}


@pytest.mark.parametrize(
    ("layout", "stage"),
    [(Layout(2), 0), (Layout(3), 1), (Layout(2, rows=2), 0), (Layout(2, rows=2), 1), (Layout(2, data=2), 1)],
    ids=str,
)
def test_same_as_one_rank(layout: Layout, stage: int, one_rank: dict[int, Outcome]) -> None:
    expected = one_rank[layout.data]
    start_state = model().state_dict()
    moved = {name: (expected.state[name] - start_state[name]).abs().max() for name in start_state}
    assert min(float(moved[name]) for name, _ in model().named_parameters()) > 80 * TOLERANCE
    compare(expected, ds_of(stage, layout), layout)


def test_norms_over_all_data_ranks_are_those_of_a_stage() -> None:
    layout = Layout(2, data=2)
    compare(reference(2, together=True), ds_of(1, layout), layout, "all")


@pytest.mark.parametrize("layout", [Layout(2), Layout(2, rows=2)], ids=str)
def test_stages_that_recompute_and_are_lean(layout: Layout, one_rank: dict[int, Outcome]) -> None:
    memory = MemoryConfig(recompute="block", lean_norm=True)
    compare(one_rank[1], ds_of(1, layout), layout, memory=memory)


def compare(
    expected: Outcome,
    ds: dict[str, Any],
    layout: Layout,
    norm_scope: str = "tiles",
    memory: MemoryConfig = MemoryConfig(),  # noqa: B008 it is frozen
) -> None:
    bounds = BOUNDS[layout.pipe]
    everybody = run_ranks(layout.world_size, staged, ds, layout, bounds, norm_scope, memory, timeout_seconds=300)
    for rank, found in enumerate(everybody):
        assert found.losses == pytest.approx(expected.losses, abs=TOLERANCE)
        assert list(found.state) == list(expected.state)
        for name, value in expected.state.items():
            assert float((found.state[name] - value).abs().max()) <= TOLERANCE, (rank, name)
        if found.outputs is not None:
            assert expected.outputs is not None
            assert float((found.outputs - expected.outputs).abs().max()) <= 10 * TOLERANCE
