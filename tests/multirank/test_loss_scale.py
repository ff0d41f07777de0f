"""float16 on CPU, by the engine's own arithmetic: gradients are clipped after they are unscaled, and the scale falls.

The loss is steep enough for a scale of 65536 to overflow float16 at the scores, and for a quarter of it not to.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import complete
from lartpc_ds.layout import Layout
from lartpc_ds.training import checkpoint
from lartpc_ds.training.checkpoint import Progress
from lartpc_ds.training.engine import Engine, finish, start
from lartpc_ds.training.losses import Loss, LossFunction, cross_entropy
from lartpc_ds.training.stage_engine import StageEngine
from tests.ranks import run_ranks

LR, CLIP, STEEPNESS = 0.05, 0.5, 8.0
FIRST, ENOUGH = 65536.0, 16384.0
WHOLE, STAGED = Layout(data=2), Layout(pipe=2)


def steep(steepness: float) -> LossFunction:
    def function(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total, weight = cross_entropy()(outputs, targets)
        return steepness * total, weight

    return function


def engine_of(stage: int, layout: Layout, precision: str = "fp16", clip: float = CLIP) -> Engine:
    config, ds = recipes.load(
        "quickstart",
        [
            f'train.ds_config="zero{stage}_{precision}"',
            f'ds.optimizer={{type="SGD",params={{lr={LR}}}}}',
            'ds.scheduler={type="constant",params={}}',
            f"ds.gradient_clipping={clip}",
            'train.lr_scaling="none"',
            "data.batch=2",
            f"train.accumulate={layout.pipe}",
        ],
    )
    groups, device = start(layout, timeout_minutes=5)
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    ready = complete(ds, config, layout, 10)
    loss = Loss(steep(STEEPNESS * config.train.accumulate))  # each micro-batch has its share of the gradient
    if layout.pipe > 1:
        return StageEngine(net, (0, 2, 5), ready, groups, device, loss)
    return Engine(net, ready, groups, device, loss)


def batches(engine: Engine) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(engine.groups.data_rank)
    return [(torch.randn(2, 2, 9, 11, generator=generator), torch.tensor([0, 2])) for _ in range(engine.micro_steps)]


def moved(engine: Engine, before: dict[str, Tensor]) -> float:
    after = engine.full_state_dict()
    return sum(float((after[name] - value).square().sum()) for name, value in before.items()) ** 0.5


def train(stage: int, layout: Layout, folder: Path) -> list[tuple[float, bool, float]]:
    """(loss scale, skipped, length of the update) of 4 steps, with a resume between the third and the fourth."""
    engine = engine_of(stage, layout)
    found = []
    for step in range(4):
        if step == 3:
            checkpoint.save(engine, folder, Progress(step), "run", {}, best=False)
            scale, skipped = engine.loss_scale, engine.skipped_steps
            engine = engine_of(stage, layout)
            checkpoint.load(engine, folder / "last")
            assert (engine.loss_scale, engine.skipped_steps) == (scale, skipped)
        before = engine.full_state_dict()
        scale_now = engine.loss_scale.value
        result = engine.step(batches(engine))
        assert not result.hopeless
        found.append((scale_now, result.skipped, moved(engine, before)))
    return found


def train_each(stages: list[int], layout: Layout, folder: Path) -> list[list[tuple[float, bool, float]]]:
    found = [train(stage, layout, folder / str(stage)) for stage in stages]
    finish()
    return found


@pytest.mark.parametrize(("layout", "stages"), [(WHOLE, [0, 1, 2, 3]), (STAGED, [0, 1])], ids=str)
def test_the_scale_falls_and_gradients_are_clipped_unscaled(layout: Layout, stages: list[int], tmp_path: Path) -> None:
    for each in run_ranks(layout.world_size, train_each, stages, layout, tmp_path):
        for found in each:
            assert [scale for scale, _, _ in found] == [FIRST, FIRST / 2, ENOUGH, ENOUGH]
            assert [skipped for _, skipped, _ in found] == [True, True, False, False]
            assert [length for _, _, length in found] == pytest.approx([0, 0, LR * CLIP, LR * CLIP], rel=1e-3)


def overflow_for_ever(stage: int, layout: Layout, precision: str, clip: float) -> tuple[list[bool], list[bool], float]:
    """A gradient of one rank alone is never finite."""
    engine = engine_of(stage, layout, precision, clip)
    before = engine.full_state_dict()
    if engine.groups.rank == 0:
        next(engine.module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    results = [engine.step(batches(engine)) for _ in range(18)]
    return [one.hopeless for one in results], [one.skipped for one in results], moved(engine, before)


def overflow_in_each(cases: list[tuple[int, str, float]], layout: Layout) -> list[tuple[list[bool], list[bool], float]]:
    found = [overflow_for_ever(stage, layout, precision, clip) for stage, precision, clip in cases]
    finish()
    return found


@pytest.mark.parametrize(
    ("layout", "cases"),
    [
        (WHOLE, [(0, "fp32", 0.0), (3, "bf16", CLIP), (2, "fp16", CLIP)]),
        (STAGED, [(0, "fp32", CLIP), (0, "fp16", 0.0)]),
    ],
    ids=str,
)
def test_a_gradient_that_no_scale_helps_changes_nothing_and_is_told(
    layout: Layout, cases: list[tuple[int, str, float]]
) -> None:
    for each in run_ranks(layout.world_size, overflow_in_each, cases, layout):
        for (_, precision, _), (hopeless, skipped, length) in zip(cases, each, strict=True):
            assert hopeless == ([False] * 16 + [True] * 2 if precision == "fp16" else [True] * 18)
            assert all(skipped) and length == 0
