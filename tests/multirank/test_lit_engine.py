"""A network that computes only what is lit, in the engine, against plain PyTorch: equal parameters after 3 steps.

ZeRO's hooks put other tensors in the place of maps and take weights away between forward and backward passes. Of two
pipeline stages the first computes only what is lit; DeepSpeed clones its sparse images. One rank may recompute what the
other one keeps, and gradients must still meet.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from lartpc_ds.exact.memory.light import light
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.exact.memory.recompute import recompute
from lartpc_ds.exact.memory.spare import Spare
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from lartpc_ds.training.engine import Engine, finish, start
from lartpc_ds.training.stage_engine import StageEngine
from tests.lit_parity import ALONE, events
from tests.multirank.test_engine_parity import CLIP, GLOBAL_BATCH, STEPS, ds_of
from tests.ranks import run_ranks

TOLERANCE = 2e-6
IMAGE = (2, 65, 97)


def model(name: str) -> nn.Module:
    torch.manual_seed(3)
    return build_model(name, planes=2, num_classes=3, width=8, norm="layer" if name == "convnext" else "group")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    kinds = ("track", "edge", "everywhere", "far")
    images = [events(kinds[step:] + kinds[:step], *IMAGE).float() for step in range(STEPS)]
    return [(one, torch.arange(GLOBAL_BATCH) % 3) for one in images]


@cache
def reference(name: str) -> dict[str, torch.Tensor]:
    net = model(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for images, labels in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
    pairs = zip(net.parameters(), model(name).parameters(), strict=True)
    moved = max(float((new - old).detach().abs().max()) for new, old in pairs)
    assert moved > 1000 * TOLERANCE, "a tolerance says something only beside what the steps changed"
    return net.state_dict()


def engine_run(
    ds: dict[str, Any], layout: Layout, micro: int, name: str, until: str, recomputed: str
) -> dict[str, torch.Tensor]:
    groups, device = start(layout, timeout_minutes=5)
    net = model(name)
    stage = layout.coordinates(groups.rank).pipe
    run = light(net, plan_lit(net, 32, until, IMAGE), ALONE) if stage == 0 else None
    if recomputed:
        spare = Spare()
        spare.fits = recomputed == "on rank 1" and groups.rank == 0
        recompute(net, ALONE, spare=spare)
    if layout.pipe > 1:
        engine: Engine = StageEngine(net, (0, 4, 11), ds, groups, device, run=run)
    else:
        engine = Engine(net, ds, groups, device)
    for images, labels in batches():
        starts = [(part * layout.data + groups.data_rank) * micro for part in range(engine.micro_steps)]
        engine.step((images[s : s + micro].to_sparse(), labels[s : s + micro]) for s in starts)
        outputs = engine.predict(images.to_sparse())  # which may change nothing
        assert outputs is None if stage < layout.pipe - 1 else outputs.shape == (GLOBAL_BATCH, 3)
    weights = engine.full_state_dict()
    finish()
    return weights


@pytest.mark.parametrize(
    ("stage", "layout", "accumulate", "name", "until", "recomputed"),
    [
        (0, Layout(data=2), 1, "resnet18", "never", ""),
        (1, Layout(data=2), 2, "resnet18", "layer3_0", "everywhere"),
        (2, Layout(data=2), 1, "convnext", "never", ""),
        (2, Layout(data=2), 1, "resnet18", "auto", "everywhere"),
        (1, Layout(data=2), 2, "resnet18", "layer2_0", "on rank 1"),
        (2, Layout(data=2), 2, "resnet18", "never", "on rank 1"),
        (3, Layout(data=2), 1, "resnet18", "never", "everywhere"),
        (3, Layout(data=2), 2, "resnet18", "layer2_0", ""),
        (0, Layout(pipe=2), 4, "resnet18", "layer1_1", ""),
        (1, Layout(pipe=2, data=2), 2, "resnet18", "layer2_0", "everywhere"),
    ],
    ids=str,
)
def test_same_parameters_as_plain_torch(
    stage: int, layout: Layout, accumulate: int, name: str, until: str, recomputed: str
) -> None:
    micro = GLOBAL_BATCH // layout.data // accumulate
    ds = ds_of(stage, micro, accumulate, layout)
    expected = reference(name)
    for weights in run_ranks(layout.world_size, engine_run, ds, layout, micro, name, until, recomputed):
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            assert float((weights[key] - value).abs().max()) <= TOLERANCE, key
