"""Strips against a plain run of the same network: outputs, input gradient and every weight gradient, in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.exact.memory import stream as stream_module
from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.exact.ops import windows
from lartpc_ds.models.build import blocks, build_model
from tests.strip_parity import IMAGE, TOLERANCE, difference, network, streamed
from tests.tile_parity import image, whole


@pytest.mark.parametrize(
    ("name", "until", "strips"),
    [
        ("resnet18", "pool", 5),
        ("resnet18", "layer1_0", 2),
        ("resnet18", "layer2_0", 3),
        ("resnet18", "layer3_1", 5),
        ("resnet18", "auto", 3),
        ("resnet50", "layer1_1", 2),
        ("resnet50", "auto", 5),
        ("convnext", "stage1_0", 3),
        ("convnext", "stage1_2", 5),
        ("convnext", "stage2_0", 2),
        ("convnext", "auto", 3),
    ],
)
def test_strips_are_a_plain_run(name: str, until: str, strips: int) -> None:
    model, x = network(name), image((2, *IMAGE))
    numbers, plan = streamed(model, x, strips, until)
    assert difference(numbers, whole(model, x)) <= TOLERANCE
    assert len(plan.strips) == strips and plan.until == (until if until != "auto" else plan.until)
    smallest = min(stop - start for start, stop in (strip.rows for strip in plan.strips))
    assert smallest < IMAGE[1] or until == "layer3_1", "strips deep in the network may need every row"


@pytest.mark.parametrize("rows", [64, 65, 97, 101])
def test_any_number_of_rows(rows: int) -> None:
    model, x = network("resnet18"), image((1, 3, rows, 33))
    assert difference(streamed(model, x, 3, "layer2_0")[0], whole(model, x)) <= TOLERANCE


class Frozen(nn.BatchNorm2d):
    """As people freeze a batch norm: it stays in evaluation whatever the model does."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(False)
        return self


def frozen_network() -> nn.Module:
    model = network("resnet18", "batch")
    generator = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = Frozen
            module.running_mean = torch.rand(module.num_features, generator=generator, dtype=torch.float64)
            module.running_var = torch.rand(module.num_features, generator=generator, dtype=torch.float64) + 0.5
    return model.train()


def test_a_frozen_batch_norm_may_stream() -> None:
    model, x = frozen_network(), image((2, *IMAGE))
    assert difference(streamed(model, x, 3, "layer2_0")[0], whole(model, x)) <= TOLERANCE


def test_towers_fold_planes_into_the_batch() -> None:
    torch.manual_seed(3)
    model = build_model("resnet18", planes=3, num_classes=4, width=4, norm="layer", plane_mode="towers").double()
    x = image((2, *IMAGE))
    assert difference(streamed(model, x, 3, "layer2_0")[0], whole(model, x)) <= TOLERANCE


def test_evaluation_streams_too_and_keeps_the_memory_format() -> None:
    model, x = network("resnet18").eval(), image((2, *IMAGE)).contiguous(memory_format=torch.channels_last)
    net = stream(copy.deepcopy(model), plan_strips(model, 3, "layer2_0", IMAGE))
    formats: list[bool] = []
    dict(blocks(net))["layer2_0"].register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
    assert formats == [True]
    assert net.state_dict().keys() == model.state_dict().keys()


def test_autocast_adds_no_more_than_rounding() -> None:
    """Strips sum their weight gradients in bfloat16, which is what convolutions see of the weights."""
    model, x = network("resnet18").float(), image((1, *IMAGE)).float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = whole(model, x)
        numbers = whole(stream(copy.deepcopy(model), plan_strips(model, 5, "layer2_0", IMAGE)), x)
    for name, expected in plain.gradients.items():
        if expected.ndim == 4:
            assert float((numbers.gradients[name] - expected).norm() / expected.norm()) < 0.02, name


def test_a_copy_runs_its_own_weights() -> None:
    model, x = network("resnet18"), image((1, *IMAGE))
    net = stream(copy.deepcopy(model), plan_strips(model, 3, "layer1_1", IMAGE))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert difference(whole(other, x), whole(model, x)) <= TOLERANCE


class Nested(nn.Module):
    """No sequence, but it says which blocks it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({f"part{n}": nn.Conv2d(3, 3, 3, 1 + n % 2, padding=1) for n in range(3)})
        self.norm = nn.BatchNorm2d(3)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [*self.body.items(), ("norm", self.norm)]

    def forward(self, x: Tensor) -> Tensor:
        for _, block in self.blocks():
            x = block(x)
        return x


def test_a_model_that_is_no_sequence_supplies_its_blocks() -> None:
    torch.manual_seed(3)
    model, x = Nested().double(), image((1, *IMAGE))
    numbers, plan = streamed(model, x, 3, "norm")
    assert plan.front == ("part0", "part1", "part2")
    assert difference(numbers, whole(model, x)) <= TOLERANCE


def test_images_of_other_rows_are_refused() -> None:
    model = network("resnet18")
    net = stream(copy.deepcopy(model), plan_strips(model, 3, "layer1_1", IMAGE))
    with pytest.raises(ValueError, match=r"must have 77 rows.*\(1, 3, 78, 45\)"):
        net(image((1, 3, 78, 45)))


# the comparison would notice


def test_a_wrong_border_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows outside the image that are not zero to a layer, as they are when they are not zeroed again."""
    model, x = network("resnet18"), image((1, *IMAGE))
    plan = plan_strips(model, 3, "layer2_0", IMAGE)
    reference = whole(model, x)
    monkeypatch.setattr(windows.F, "pad", lambda x, pad, value: PAD(x, pad, value=value or 0.01))
    assert difference(whole(stream(copy.deepcopy(model), plan), x), reference) > 1e-5


PAD = F.pad


@pytest.mark.parametrize("row", [0, -1])
def test_every_row_of_a_halo_counts(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """Without the outermost row that the middle strip reads, numbers differ; so halos are as thin as they can be."""
    model, x = network("resnet18"), image((1, *IMAGE))
    plan = plan_strips(model, 3, "layer1_1", IMAGE)
    reference, run = whole(model, x), stream_module._run
    calls: list[int] = []

    def without(function: Callable[[Tensor], Tensor], view: Tensor) -> Tensor:
        calls.append(view.shape[2])
        if len(calls) == 2:
            mask = torch.ones(view.shape[2], 1, dtype=view.dtype)
            mask[row] = 0
            view = view * mask
        return run(function, view)  # type: ignore[arg-type]

    monkeypatch.setattr(stream_module, "_run", without)
    assert difference(whole(stream(copy.deepcopy(model), plan), x), reference) > 1e-5
    assert 0 < plan.strips[1].rows[0] < plan.strips[1].rows[1] < IMAGE[1]
