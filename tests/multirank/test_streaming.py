"""A streamed network in the engine against a plain loop: the same parameters after 3 steps; ZeRO 0 to 3, 1 and 2 ranks.

ZeRO's hooks on modules and parameters have to see strips as one forward and one backward pass.
"""

from typing import Any

import pytest
import torch
from torch import nn

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import complete
from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from lartpc_ds.training.engine import Engine, finish, start
from tests.ranks import run_ranks

STEPS, GLOBAL_BATCH, CLIP, TOLERANCE = 3, 4, 0.5, 1e-6
SGD = 'ds.optimizer={type="SGD",params={lr=0.01,momentum=0.9}}'
IMAGE = (2, 65, 97)


def model() -> nn.Module:
    torch.manual_seed(3)
    return build_model("resnet18", planes=2, num_classes=3, width=4, norm="layer")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(GLOBAL_BATCH) % 3
    return [(torch.randn(GLOBAL_BATCH, *IMAGE, generator=generator), labels) for _ in range(STEPS)]


def reference() -> dict[str, torch.Tensor]:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for images, labels in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        assert norm > CLIP, "the test must clip"
        optimizer.step()
    pairs = zip(net.parameters(), model().parameters(), strict=True)
    moved = max(float((new - old).detach().abs().max()) for new, old in pairs)
    assert moved > 1000 * TOLERANCE, "a tolerance says something only beside what the steps changed"
    return net.state_dict()


def engine_run(ds: dict[str, Any], layout: Layout, micro: int, until: str) -> dict[str, torch.Tensor]:
    groups, device = start(layout, timeout_minutes=5)
    net = model()
    plan = plan_strips(net, 3, until, IMAGE)
    engine = Engine(stream(net, plan), ds, groups, device)
    for images, labels in batches():
        starts = [(part * layout.data + groups.data_rank) * micro for part in range(engine.micro_steps)]
        engine.step((images[s : s + micro], labels[s : s + micro]) for s in starts)
        scores = engine.predict(images)
        assert scores.shape == (GLOBAL_BATCH, 3)
    weights = engine.full_state_dict()
    finish()
    return weights


@pytest.mark.parametrize(
    ("stage", "ranks", "accumulate", "until"),
    [(0, 1, 1, "layer2_0"), (1, 2, 1, "layer1_1"), (2, 1, 2, "auto"), (2, 2, 1, "auto"), (3, 2, 1, "layer1_1")],
)
def test_same_parameters_as_plain_torch(stage: int, ranks: int, accumulate: int, until: str) -> None:
    micro = GLOBAL_BATCH // ranks // accumulate
    config, ds = recipes.load(
        "quickstart",
        [
            f'train.ds_config="zero{stage}_fp32"',
            SGD,
            'ds.scheduler={type="constant",params={}}',
            f"ds.gradient_clipping={CLIP}",
            'train.lr_scaling="none"',
            f"data.batch={micro}",
            f"train.accumulate={accumulate}",
        ],
    )
    layout = Layout(data=ranks)
    expected = reference()
    for weights in run_ranks(ranks, engine_run, complete(ds, config, layout, STEPS), layout, micro, until):
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            assert float((weights[name] - value).abs().max()) <= TOLERANCE, name
