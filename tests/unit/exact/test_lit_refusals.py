"""What cannot run on patches ends the lit part, or is refused where the user wants it to run there."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lartpc_ds.errors import UserError
from lartpc_ds.exact.memory.light import light
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.models.build import build_model
from tests.lit_parity import ALONE, assert_lit_agrees, events

IMAGE = (4, 45, 37)


class Called(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def network(bad: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    first, last = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)
    return nn.Sequential(OrderedDict(first=first, bad=bad, last=last)).double()


REFUSED = {
    "dropout": (nn.Dropout(0.5), "dropout with p = 0.5 draws random masks"),
    "dropout2d": (nn.Dropout2d(0.5), "dropout2d with p = 0.5 draws random masks"),
    "noise": (Called(lambda x: x + torch.randn_like(x)), "randn_like draws random numbers"),
    "drop path": (Called(lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5)), "bernoulli"),
    "rows": (Called(lambda x: x * (x.shape[2] / 10)), "mul depends on the size of the map"),
    "patches": (Called(lambda x: x / len(x)), "div depends on the size of the map or on the number of its patches"),
    "same size": (Called(lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:])), "interpolate with size"),
    "grid": (
        Called(lambda x: x + torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device)),
        "add meets a whole tensor of shape (16,)",
    ),
    "zeros": (Called(lambda x: torch.cat([x, torch.zeros_like(x[:1]).expand_as(x)], 1)[:, :4]), "rows, columns or ev"),
    "own": (Called(_Doubled.apply), "is part of _Doubled, an autograd function"),
    "checkpoint": (
        Called(lambda x: checkpoint(torch.relu, x, use_reentrant=False)),  # type: ignore[arg-type,return-value]
        "torch.utils.checkpoint",
    ),
    "stride": (nn.Conv2d(4, 4, 3, 5, 2), "has a stride of 5, which does not divide patches of 16 pixels"),
    "pool": (nn.MaxPool2d(3, 3), "has a stride of 3, which does not divide patches of 16 pixels"),
    "even": (Called(lambda x: F.relu(x) if x.shape[2] % 2 else x.tanh()), "relu depends on the size of the map"),
    "multiple": (Called(lambda x: F.pad(x, (0, -x.shape[3] % 4, 0, 0))), "pad depends on the size of the map"),
    "flip": (Called(lambda x: x.flip(3)), "flip has no proven form on patches"),
    "reflect": (nn.ReflectionPad2d(1), "pad mode 'reflect'"),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolate with size None, scale_factor 2.0 and mode"),
    "part": (Called(lambda x: x[:, :, 1:]), "getitem takes a part of the rows"),
    "largest": (Called(lambda x: x * x.amax((2, 3), keepdim=True)), "amax over rows, columns or events"),
    "events": (Called(lambda x: x - x.mean(0, keepdim=True)), "mean over rows, columns or events"),
    "rows alone": (Called(lambda x: x - x.mean(2, keepdim=True)), "mean over rows, columns or events"),
    "tokens": (Called(lambda x: x.flatten(2).softmax(1).unflatten(2, x.shape[2:])), "flatten reshapes"),
    "sizes": (Called(lambda x: x + F.pad(x, (0, -1))[:, :, :, :1] * 0), "rows, columns or events"),
    "indices": (
        Called(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
        "max_pool2d_with_indices has no proven form",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_block_without_a_proven_form_ends_the_lit_part(name: str) -> None:
    bad, reason = REFUSED[name]
    model, x = network(bad), events(("track", "empty"), *IMAGE)
    for until in ("never", "last"):
        with pytest.raises(UserError) as refusal:
            plan_lit(model, 16, until, IMAGE)
        assert reason in str(refusal.value) and "bad" in str(refusal.value), refusal.value
    for until in ("bad", "auto"):
        plan = plan_lit(model, 16, until, IMAGE)
        assert plan.covered == 1 and plan.until_of((x != 0).any(1).numpy()) in ("first", "bad")


def test_a_first_block_without_a_proven_form_is_refused_always() -> None:
    model = nn.Sequential(OrderedDict(bad=nn.ReflectionPad2d(1), last=nn.Conv2d(4, 2, 1)))
    with pytest.raises(UserError, match=r"^bad .*mode 'reflect'"):
        plan_lit(model, 16, "auto", IMAGE)


def test_what_is_drawn_in_training_only_counts_in_training() -> None:
    model = network(nn.Dropout(0.5))
    assert plan_lit(model.eval(), 16, "never", IMAGE).covered == 3
    assert plan_lit(network(nn.Dropout(0.0)), 16, "never", IMAGE).covered == 3
    assert_lit_agrees(model.eval(), events(("track",), *IMAGE), 16)


@pytest.mark.parametrize("until", ["first", "nowhere"])
def test_an_unknown_until_is_refused(until: str) -> None:
    with pytest.raises(UserError, match=rf"^memory\.lit_until = '{until}': it must be .*one of bad, last$"):
        plan_lit(network(nn.Identity()), 16, until, IMAGE)


def test_patches_that_are_smaller_than_the_strides_are_refused_by_layer() -> None:
    model = build_model("resnet18", planes=2, num_classes=3, width=4)
    with pytest.raises(UserError, match=r"^layer3_0.*stride of 2, which does not divide patches of 1 pixels"):
        plan_lit(model, 8, "never", (2, 100, 100))
    assert plan_lit(model, 8, "auto", (2, 100, 100)).covered == 6


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="has no blocks"):
        plan_lit(Called(torch.relu), 16, "auto", IMAGE)


def test_an_image_of_another_size_is_refused() -> None:
    model = network(nn.Identity())
    light(model, plan_lit(model, 16, "never", IMAGE), ALONE)
    with pytest.raises(ValueError, match="must have 45 rows and 37 columns"):
        model(torch.zeros(1, 4, 45, 36, dtype=torch.float64))
