"""What a converted model does besides its layers: functions of torch, copies, second derivatives, unplanned calls."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Layout
from tests.tile_parity import assert_tiles_agree, image, on_threads

LAYOUT, IMAGE = Layout(rows=2), (2, 24, 19)


class Then(nn.Module):
    """A convolution, a function of its map and the image, and another convolution."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), x))


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "operators": lambda x, y: sum([x, 1 - y, 2 * y, 1 + y, x / 2, 2 / (x * x + 1), x**2, 2**x, -x, abs(x)]),
    "in place": lambda x, y: x.clone().mul_(2).add_(y).clamp_(-1, 1),
    "normalize": lambda x, y: F.normalize(x) + F.normalize(x, dim=1, p=1.0) + F.normalize(y, 1.0, 1),
    "prelu": lambda x, y: F.prelu(x, x.new_full((2,), 0.3)),
    "channels": lambda x, y: (
        torch.chunk(x, chunks=2, dim=1)[0] * x.split(1, 1)[1] + y.split(split_size=1, dim=1)[0] * x
    ),
    "extremes": lambda x, y: x.max(1, keepdim=True)[0] * x - y.amin(1, keepdim=True) + torch.max(x, y),
    "channels last": lambda x, y: F.layer_norm(x.permute(0, 2, 3, 1), (2,)).permute(0, 3, 1, 2),
    "linear": lambda x, y: F.linear(x.transpose(1, 3), torch.ones(2, 2, device=x.device).to(x.dtype)).transpose(1, 3),
    "softmax": lambda x, y: x.softmax(1) * F.softmax(y, dim=1),
    "reshaped channels": lambda x, y: x.unflatten(1, (2, 1)).flatten(1, 2).reshape(len(x), -1, *x.shape[2:]),
    "where": lambda x, y: torch.where(x > y, x, y.masked_fill(y < 0, 0.0)),
    "attention of channels": lambda x, y: x * (x.mean((2, 3), keepdim=True) - x.amax(1, keepdim=True)).sigmoid(),
    "picked channels": lambda x, y: torch.cat([x[:, :1], y[:, 1:]], dim=1),
    "cropped and changed in place": lambda x, y: F.relu_(F.pad(x, (0, -1))).sum((2, 3))[..., None, None] + x,
    "padded by nothing, changed in place": lambda x, y: F.relu_(F.pad(x, (0, 0, 0, 0))) + 2 * x,
    "dropped with probability 0": lambda x, y: F.dropout(x.permute(0, 2, 3, 1), 0.0).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_agree(name: str) -> None:
    torch.manual_seed(0)
    model = Then(FUNCTIONS[name]).double()
    for batch in (1, 3):
        assert_tiles_agree(model, image((batch, *IMAGE)), 2, 2)


def _replayed(model: nn.Module, fn: Callable[[nn.Module, Tensor], Any], **options: Any) -> list[Any]:
    """fn(converted model, tile) on two ranks."""
    plan = plan_tiles(model, LAYOUT, IMAGE, "never")

    def rank(tiles: Tiles) -> Any:
        (top, bottom), _ = plan.tile(tiles.row, tiles.col)
        return fn(convert(copy.deepcopy(model), plan, tiles), image((1, *IMAGE))[:, :, top:bottom])

    return on_threads(LAYOUT, rank, **options)


def _model(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), *layers).double()


class OnlyInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1) if self.training else x


def test_a_call_that_was_not_planned_is_an_error() -> None:
    """Planned in evaluation, then trained: the pool would run on the tile as if it were the image."""
    with pytest.raises(
        UserError,
        match=r"1 \(test_replay\.py:\d+\): avg_pool2d of \(1, 2, 12, 19\) was not made when the tiles were planned",
    ):
        _replayed(_model(OnlyInTraining()).eval(), lambda model, x: model.train()(x))


def test_whole_maps_may_do_as_they_like() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).permute(2, 0, 1)  # events in the middle: another shape for every batch
            return (tokens - tokens.mean(0)).mean(2)

    for batch in (1, 3):
        assert_tiles_agree(_model(Head()), image((batch, *IMAGE)), 2, 2, "1")


def test_a_copy_of_a_converted_model_runs_its_own_parameters() -> None:
    def zeroed(model: nn.Module, x: Tensor) -> tuple[float, float]:
        average = copy.deepcopy(model)
        for parameter in average.parameters():
            parameter.data.zero_()
        return float(average(x).detach().abs().max()), float(model(x).detach().abs().max())

    assert all(copied == 0 and original > 0 for copied, original in _replayed(_model(), zeroed))


def test_conversion_keeps_the_keys_of_the_state() -> None:
    model = _model(nn.BatchNorm2d(2))
    assert _replayed(model, lambda converted, _: list(converted.state_dict())) == [list(model.state_dict())] * 2


@pytest.mark.parametrize(
    "layer", [nn.Identity(), nn.BatchNorm2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1)], ids=repr
)
def test_a_second_derivative_is_refused(layer: nn.Module) -> None:
    def penalty(model: nn.Module, x: Tensor) -> None:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    with pytest.raises(RuntimeError, match="once_differentiable"):
        _replayed(_model(layer), penalty)


def test_overlap_changes_nothing() -> None:
    def step(model: nn.Module, x: Tensor) -> list[Tensor]:
        model(x).square().sum().backward()
        return [torch.as_tensor(parameter.grad) for parameter in model.parameters()]

    model = _model(nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 2, 5, 1, 2))
    for one, other in zip(*(_replayed(model, step, overlap=one) for one in (False, True)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("frozen", range(4))
@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(2, 2, 3, padding=1),
        nn.ConvTranspose2d(2, 2, 3, 2),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1),
        nn.Upsample(scale_factor=2),
        nn.InstanceNorm2d(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_images_and_frozen_layers_ask_for_no_gradient(first: nn.Module, frozen: int) -> None:
    """As in training, where no image needs one: then the first layers send nothing home."""
    torch.manual_seed(0)
    last = nn.Conv2d(2, 3, 5, 2, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(copy.deepcopy(first), *last, nn.AdaptiveAvgPool2d(1)).double()
    for layer in model[:frozen]:
        layer.requires_grad_(False)

    def gradients(net: nn.Module, x: Tensor) -> list[Tensor | None]:
        net(x).square().sum().backward()
        return [parameter.grad for parameter in net.parameters()]

    ranks = _replayed(model, gradients)
    for expected, *given in zip(gradients(copy.deepcopy(model), image((1, *IMAGE))), *ranks, strict=True):
        if expected is None:
            assert given == [None, None]
        else:
            assert float((torch.stack(given).mean(0) - expected).abs().max()) < 1e-11


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.block, self.use_reentrant = block, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=self.use_reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_block_finds_its_plans(use_reentrant: bool) -> None:
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    assert_tiles_agree(_model(Checkpointed(block.double(), use_reentrant)), image((2, *IMAGE)), 2, 2)


class Flexible(nn.Module):
    """Calls its layer by `forward`, and is called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.forward(input=x)


def test_a_module_called_by_its_forward_is_noticed() -> None:
    assert_tiles_agree(_model(Flexible().double()), image((2, *IMAGE)), 2, 2)


def test_hooks_of_a_layer_are_part_of_the_plan() -> None:
    model = _model(nn.Conv2d(2, 2, 3, padding=1).double())
    model[1].register_forward_pre_hook(lambda module, args: (args[0] * args[0].mean((2, 3), keepdim=True),))
    model[1].register_forward_hook(lambda module, args, y: F.avg_pool2d(y, 3, 1, 1))
    assert_tiles_agree(model, image((2, *IMAGE)), 2, 2)


def test_parametrised_weights_agree() -> None:
    model = _model(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)))
    assert_tiles_agree(model, image((2, *IMAGE)), 2, 2)
