"""What a block keeps, moves and computes, against counting by hand."""

import pytest
import torch
from torch import nn

from lartpc_ds.costs.cuts import BlockCost
from lartpc_ds.costs.profile import profile
from lartpc_ds.errors import UserError
from lartpc_ds.models.build import blocks, build_model
from tests.machine import BYTES_PER_SECOND, FLOPS_PER_SECOND, rates

EVENTS, SIZE = 2, 16
MAP = EVENTS * 4 * SIZE * SIZE
"""Pixels of a map of 4 channels."""


def costs_of(*modules: nn.Module, precision: str = "fp32", planes: int = 3) -> list[BlockCost]:
    with torch.device("meta"):
        copies = [(f"block{number}", module.to("meta")) for number, module in enumerate(modules)]
    return profile(copies, (EVENTS, planes, SIZE, SIZE), precision, bytes_per_parameter=16, rates=rates())


def conv(channels: int, bias: bool = False) -> nn.Module:
    return nn.Conv2d(channels, 4, 3, padding=1, bias=bias)


def test_each_map_is_counted_once_over_the_whole_model() -> None:
    image = EVENTS * 3 * SIZE * SIZE
    convolution, norm, relu, second = costs_of(conv(3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4))
    assert convolution.saved_bytes == 4 * image  # its input
    assert norm.saved_bytes == 4 * MAP + 2 * 4 * 4  # its input, and mean and deviation of each channel
    assert relu.saved_bytes == 4 * MAP  # its output, which the norm has not kept
    assert second.saved_bytes == 0  # its input is what the activation has kept
    assert [one.saves_input for one in (convolution, norm, second)] == [True] * 3
    assert [one.output_saved for one in (convolution, norm, relu, second)] == [False, False, True, False]
    assert second.parameters == 4 * 4 * 9 and second.state_bytes == 16 * second.parameters
    assert (second.input_bytes, second.output_bytes) == (4 * MAP, 4 * MAP)
    assert second.transient_bytes == 4 * (3 * MAP + 2 * second.parameters)  # gradients in and out, and the input


def test_maps_are_in_the_precision_of_the_run() -> None:
    image = EVENTS * 3 * SIZE * SIZE
    first, norm, relu = costs_of(conv(3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), precision="bf16")
    assert first.saved_bytes == 2 * image + 2 * first.parameters  # and the weights, cast
    assert norm.saved_bytes == 2 * MAP + 2 * 4 * 2
    assert (relu.saved_bytes, relu.output_bytes) == (2 * MAP, 2 * MAP)


def test_a_pool_keeps_its_indices() -> None:
    (pool,) = costs_of(nn.MaxPool2d(2), planes=4)
    assert pool.saved_bytes == 0  # an image needs no gradient
    _, pool = costs_of(conv(3), nn.MaxPool2d(2))
    assert pool.saved_bytes == 4 * MAP + 8 * MAP // 4


def test_time_is_arithmetic_or_traffic() -> None:
    """A wide 1x1 convolution of many channels computes; an activation moves."""
    wide = [nn.Conv2d(1024, 1024, 1, bias=False) for _ in range(2)]
    first, second, relu = costs_of(*wide, nn.ReLU(inplace=True), planes=1024)
    pixels = EVENTS * SIZE * SIZE
    forward = 1e9 * 2 * pixels * 1024**2 / FLOPS_PER_SECOND
    assert first.forward_ns == pytest.approx(forward, rel=1e-3)
    assert first.backward_ns == pytest.approx(forward, rel=1e-3)  # no gradient of the image
    assert second.backward_ns == pytest.approx(2 * forward, rel=1e-3)
    assert relu.forward_ns == pytest.approx(1e9 * 2 * 4 * pixels * 1024 / BYTES_PER_SECOND, rel=1e-3)


def test_the_model_is_left_alone() -> None:
    with torch.device("meta"):
        model = build_model("resnet18", planes=2, num_classes=3, width=4).eval()
    before = {name: (value.device, value.requires_grad) for name, value in model.state_dict(keep_vars=True).items()}
    costs = profile(blocks(model), (1, 2, 33, 49), "bf16", 16, rates())
    after = {name: (value.device, value.requires_grad) for name, value in model.state_dict(keep_vars=True).items()}
    assert before == after and not model.training
    assert sum(cost.parameters for cost in costs) == sum(parameter.numel() for parameter in model.parameters())


def test_blocks_that_are_no_sequence() -> None:
    with pytest.raises(UserError, match="block1: cannot take"):
        costs_of(conv(3), conv(5))
    with pytest.raises(UserError, match="block0: gives a tuple"):
        costs_of(nn.AdaptiveMaxPool2d(2, return_indices=True))
