"""What cannot run in strips is refused before anything runs, naming layer, line and what to change."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lartpc_ds.errors import UserError
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.models.build import build_model

IMAGE = (3, 77, 45)


class Calls(nn.Module):
    """A function of the map, beside a convolution."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def refusal(block: nn.Module, strips: int = 3) -> str:
    model = nn.Sequential(OrderedDict(first=nn.ReLU(), front=block, rest=nn.Identity()))
    with pytest.raises(UserError) as refused:
        plan_strips(model, strips, "rest", IMAGE)
    return str(refused.value)


def in_place(x: Tensor) -> Tensor:
    y = F.max_pool2d(F.pad(x, (0, 0, 0, 0)), 3, 1, 1)
    x += y
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: F.batch_norm(x, None, None, training=True), ["batch_norm", "sweep", "model.norm=", "stream_until"]),
        (lambda x: F.group_norm(x, 3), ["group_norm", "sweep"]),
        (lambda x: F.instance_norm(x), ["instance_norm", "sweep"]),
        (
            lambda x: F.layer_norm(x, x.shape[1:]),
            ["layer_norm", "runs over rows", "must act per pixel", "memory.stream_until"],
        ),
        (lambda x: F.adaptive_avg_pool2d(x, 1), ["adaptive_avg_pool2d", "sweep"]),
        (lambda x: x.mean((2, 3), keepdim=True), ["mean", "runs over rows"]),
        (lambda x: x.flatten(1), ["flatten", "mixes rows"]),
        (lambda x: x[:, :, ::2], ["getitem", "takes a part of the rows", "memory.stream_strips = 1"]),
        (lambda x: F.interpolate(x, scale_factor=2.0), ["interpolate", "no proven form"]),
        (lambda x: F.conv_transpose2d(x, torch.zeros(3, 3, 2, 2, device=x.device)), ["conv_transpose2d"]),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), ["pad", "'reflect'", "constant"]),
        (lambda x: x.softmax(2), ["softmax", "runs over rows", "sweep"]),
        (lambda x: torch.cat([x, x], 2), ["cat", "along their rows"]),
        (lambda x: x + torch.zeros(x.shape[2:], device=x.device), ["add", "whole tensor of shape (77, 45)"]),
        (lambda x: F.dropout(x, 0.5, training=True), ["dropout", "p = 0.5", "masks"]),
        (lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5), ["bernoulli", "random numbers"]),
        (lambda x: x + torch.randn_like(x), ["randn_like", "random numbers"]),
        (lambda x: Doubled.apply(x), ["mul", "Doubled", "autograd function"]),
        (lambda x: checkpoint(F.relu, x, use_reentrant=False), ["relu", "torch.utils.checkpoint"]),
        (lambda x: x * torch.tensor(float(x.shape[2])), ["tensor", "depends on the size"]),
        (lambda x: x.index_select(1, torch.tensor([x.shape[2] % 3], device=x.device)), ["depends on the size"]),
        (lambda x: x * torch.full_like(x, x.shape[2]), ["full_like", "depends on the size"]),
        (lambda x: x * torch.full((1,), x.shape[2], device=x.device), ["full", "depends on the size"]),
        (lambda x: x * x.new_full((1,), x.shape[2]), ["new_full", "depends on the size"]),
        (lambda x: x.repeat(1, x.shape[2], 1, 1), ["the block", "depends on the size"]),
        (
            lambda x: F.batch_norm(x, x.new_zeros(3), x.new_ones(3), eps=1e-5 * x.shape[2]),
            ["batch_norm", "depends on the size"],
        ),
        (lambda x: x / x.shape[2], ["div", "depends on the size", "do not compute with the size"]),
        (in_place, ["add", "in place", "y = y + x"]),
        (lambda x: (x, x), ["gives no map", "one map"]),
        (lambda x: torch.zeros(2, 3, 77, 45, device=x.device), ["gives no map"]),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], ["max_pool2d"]),
    ],
)
def test_operators(function: Callable[[Tensor], Any], words: list[str]) -> None:
    message = refusal(Calls(function))
    missing = [word for word in [*words, "front", "test_stream_refusals.py:"] if word not in message]
    assert not missing, f"{missing} not in: {message}"


def test_images_are_not_changed_in_place() -> None:
    model = nn.Sequential(OrderedDict(first=nn.ReLU(inplace=True), conv=nn.Conv2d(3, 3, 3), rest=nn.Identity()))
    with pytest.raises(UserError, match=r"first .*relu changes the images in place"):
        plan_strips(model, 2, "rest", IMAGE)


@pytest.mark.parametrize("alias", [lambda x: x.detach(), lambda x: x.data], ids=["detached", "data"])
def test_images_are_not_changed_through_an_alias(alias: Callable[[Tensor], Tensor]) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * alias(x).add_(1)

    model = nn.Sequential(OrderedDict(first=InPlace(), rest=nn.Identity()))
    with pytest.raises(UserError, match=r"first .*add changes the images in place"):
        plan_strips(model, 2, "rest", IMAGE)


def test_dropout_of_nothing_and_in_evaluation_may_stream() -> None:
    for block in (nn.Dropout(0.0), nn.Dropout(0.5).eval()):
        model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 3), front=block, rest=nn.Identity()))
        assert plan_strips(model, 3, "rest", IMAGE).front == ("conv", "front")


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("until", ["auto", "layer2_0"])
def test_norms_that_need_a_sweep(norm: str, until: str) -> None:
    model = build_model("resnet18", planes=3, num_classes=3, width=4, norm=norm)
    with pytest.raises(UserError, match=r"stem\.1 \(.*_norm takes statistics over the whole map.*model\.norm="):
        plan_strips(model, 2, until, IMAGE)
    if norm == "batch":
        assert plan_strips(model.eval(), 2, until, IMAGE).strips


def test_a_norm_after_the_front_is_free() -> None:
    convs = {name: nn.Conv2d(3, 3, 3, padding=1) for name in ("one", "two")}
    model = nn.Sequential(OrderedDict(**convs, norm=nn.BatchNorm2d(3), three=nn.Conv2d(3, 3, 3), last=nn.ReLU()))
    assert plan_strips(model, 2, "auto", IMAGE).until in ("two", "norm")


@pytest.mark.parametrize("until", ["stem", "layer9", "", "never"])
def test_no_such_block(until: str) -> None:
    model = build_model("resnet18", planes=3, num_classes=3, width=4, norm="layer")
    with pytest.raises(
        UserError, match=rf"memory\.stream_until = '{until}'.*\"auto\" or one of pool, layer1_0, .*head"
    ):
        plan_strips(model, 2, until, IMAGE)


def test_more_strips_than_rows() -> None:
    model = build_model("resnet18", planes=3, num_classes=3, width=4, norm="layer")
    with pytest.raises(UserError, match=r"memory\.stream_strips = 6.*until layer4_0 has 5 rows.*fewer strips"):
        plan_strips(model, 6, "layer4_0", IMAGE)
    assert len(plan_strips(model, 6, "auto", IMAGE).strips) == 6
    with pytest.raises(UserError, match=r"memory\.stream_strips = 78"):
        plan_strips(model, 78, "auto", IMAGE)


def test_a_model_without_blocks() -> None:
    with pytest.raises(UserError, match=r"model Conv2d has no blocks\(\).*memory\.stream_strips"):
        plan_strips(nn.Conv2d(3, 3, 3), 2, "auto", IMAGE)


def test_planning_leaves_the_model_as_it_was() -> None:
    model = build_model("resnet18", planes=3, num_classes=3, width=4, norm="layer")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    plan_strips(model, 3, "auto", IMAGE)
    assert model.training and {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
