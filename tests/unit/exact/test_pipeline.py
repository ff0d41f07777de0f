"""Stages one after the other are the model, exactly, in float64; and they name their weights as the model does."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.tiles import Imagined, Tiles
from lartpc_ds.exact.memory.light import RunBlocks, light
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.exact.pipeline import Names, Stage, cut_stage
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.models.build import blocks, build_model
from tests.lit_parity import ALONE, assert_same_numbers, events, precise, ready
from tests.tile_parity import Numbers, image, whole


def model(name: str, planes: str = "stacked") -> nn.Module:
    torch.manual_seed(3)
    return build_model(name, planes=3, num_classes=5, width=4, plane_mode=planes).double()


def stages_of(net: nn.Module, bounds: Bounds, run: RunBlocks | None = None) -> list[tuple[Stage, Names]]:
    runs = [run, *[None] * (len(bounds) - 2)]
    return [cut_stage(net, blocks(net), bounds, number, lambda: None, runs[number]) for number in range(len(runs))]


def passed_on(x: Tensor) -> Tensor:
    """As a message: contiguous, and without the sender's graph."""
    assert x.is_contiguous(), x.stride()
    return x.detach().clone().requires_grad_(x.is_floating_point())


@pytest.mark.parametrize(
    ("name", "planes", "bounds"),
    [
        ("resnet18", "stacked", (0, 1, 4, 10, 11)),
        ("resnet18", "towers", (0, 3, 12)),
        ("resnet50", "stacked", (0, 8, 19)),
        ("convnext", "stacked", (0, 2, 9, 24)),
    ],
)
def test_stages_compute_the_model(name: str, planes: str, bounds: Bounds) -> None:
    whole, parted = model(name, planes), model(name, planes)
    images = torch.randn(2, 3, 45, 67, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = whole(images)
    expected.square().sum().backward()
    inputs, outputs = [], []
    stages = stages_of(parted, bounds)
    for number, (stage, _) in enumerate(stages):
        inputs.append(images if number == 0 else passed_on(outputs[-1]))
        outputs.append(stage(inputs[-1]))
    assert torch.equal(outputs[-1], expected)
    outputs[-1].square().sum().backward()
    for number in reversed(range(len(stages) - 1)):
        gradient = inputs[number + 1].grad
        assert gradient is not None and gradient.is_contiguous()
        outputs[number].backward(gradient)
    for (key, one), (_, other) in zip(whole.named_parameters(), parted.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad - other.grad).abs().max()) <= 1e-12 * float(one.grad.abs().max()), key
    together = {key: value for stage, names in stages for key, value in names.whole(stage.state_dict()).items()}
    state = whole.state_dict()
    assert set(together) == set(state) == set(stages[0][1].order)
    assert all(torch.equal(together[key], value) for key, value in state.items())


@pytest.mark.parametrize(("bounds", "until"), [((0, 4, 7, 11), "layer2_0"), ((0, 5, 11), "layer1_1")])
def test_a_first_stage_that_computes_only_what_is_lit(bounds: Bounds, until: str) -> None:
    net, x = ready(model("resnet18")), events(("track", "edge"), 3, 77, 101)
    reference = whole(precise(net), x)
    stages = stages_of(net, bounds, light(net, plan_lit(net, 16, until, (3, 77, 101)), ALONE))
    x.requires_grad_()
    y = x
    for stage, _ in stages:
        y = stage(y)
    (y * image(y.shape, seed=99)).sum().backward()
    gradients = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    assert x.grad is not None
    assert_same_numbers(Numbers(y, x.grad, gradients, dict(net.named_buffers())), reference, x)


def test_other_stages_are_let_go() -> None:
    net = model("resnet18")
    layout = Layout()
    image = (3, 45, 67)
    group = Imagined(1, 0)
    convert(net, plan_tiles(net, layout, image), Tiles(1, 1, group, group, group))
    theirs, ours = (weakref.ref(next(block.parameters())) for _, block in (blocks(net)[0], blocks(net)[5]))
    stage, _ = cut_stage(net, blocks(net), (0, 5, 11), 1, lambda: None)
    del net
    gc.collect()
    assert theirs() is None and ours() is not None and len(stage.blocks) == 6


class Registered(nn.Module):
    """A model of a user's, whose blocks lie deeper than its own names, and with a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"one": nn.Conv2d(3, 4, 3), "two": nn.Conv2d(4, 4, 3)})
        self.register_buffer("scale", torch.tensor([2.0]))

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return list(self.parts.items())


def test_names_are_those_of_the_model() -> None:
    net = Registered()
    (first, names), (second, others) = stages_of(net, (0, 1, 2))
    assert list(first.state_dict()) == list(second.state_dict()) == ["blocks.0.weight", "blocks.0.bias"]
    assert set(names.whole(first.state_dict())) == {"parts.one.weight", "parts.one.bias", "scale"}
    assert set(others.whole(second.state_dict())) == {"parts.two.weight", "parts.two.bias"}
    assert names.order == others.order == tuple(net.state_dict())


def test_a_stage_counts_its_micro_batches_in_training_only() -> None:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1

    net = model("resnet18")
    stage, _ = cut_stage(net, blocks(net), (0, 2, 11), 0, tick)
    images = torch.randn(1, 3, 45, 67, dtype=torch.float64)
    stage(images)
    stage.eval()(images)
    assert count == 1
