"""Norms that lack a weight, a bias or both, and what the kernels behind them are asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lartpc_ds.costs.kernels import Sizes, Stopwatch
from lartpc_ds.costs.operators import operator_rates
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.kernels.norms import normalise, parts_of, statistics_of
from lartpc_ds.exact.spatialize import TilePlan, plan_tiles
from lartpc_ds.layout import Layout
from tests.tile_parity import assert_tiles_agree, image, on_threads, on_tile


class _OfChannels(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "layer": lambda: _OfChannels(4),
}
KEPT = {"weight": ("weight",), "bias": ("bias",), "neither": ()}
# of a group norm with a bias only, torch has no backward pass itself
CASES = [(norm, kept) for norm in NORMS for kept in KEPT if (norm, kept) != ("group", "bias")]


def _network(norm: str, kept: tuple[str, ...], act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(2)
    one = NORMS[norm]()
    for name in ("weight", "bias"):
        parameter = getattr(one, name)
        if name in kept:
            nn.init.normal_(parameter, 0.3, 0.5)
        else:
            setattr(one, name, None)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), one, act(), nn.Conv2d(4, 2, 3)).double()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "kept"), CASES)
def test_a_norm_without_a_weight_or_a_bias_is_that_of_one_device(norm: str, kept: str) -> None:
    x = image((2, 2, 13, 11))
    assert_tiles_agree(_network(norm, KEPT[kept], nn.GELU), x, 2, 2)
    for rows in (1, 2):
        assert_tiles_agree(_network(norm, KEPT[kept]), x, rows, 1, lean_norm=True)


class _Watched(TorchDispatchMode):
    """Notes which weights `native_batch_norm_backward` gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm_backward.default:
            self.weights.append(args[2])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "layer"])
def test_the_sums_of_a_norm_are_asked_with_a_weight_which_cuda_needs(norm: str) -> None:
    network, x = _network(norm, ()), image((2, 2, 13, 11))
    for layout, lean_norm in ((Layout(), True), (Layout(rows=2), False), (Layout(rows=2), True)):
        plan = plan_tiles(network, layout, (2, 13, 11), lean_norm=lean_norm)

        def watched(tiles: Tiles, plan: TilePlan = plan) -> _Watched:
            with _Watched() as mode:
                on_tile(network, x, plan, tiles, torch.Size((2, 2, 11, 9)))
            return mode

        for mode in on_threads(layout, watched):
            assert mode.weights and all(weight is not None for weight in mode.weights)


def test_calibration_measures_these_sums_with_a_weight_too() -> None:
    tiny = Sizes(map_bytes=1 << 14, convolution_flops=1e6, matmul_side=32, fresh_bytes=1 << 16, repeats=1)
    with _Watched() as mode:
        operator_rates("fp32", tiny, Stopwatch(torch.device("cpu"), 1))
    assert mode.weights and all(weight is not None for weight in mode.weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_ones_for_a_weight_change_no_bit_on_cpu(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x, gradient = (image((2, 4, 9, 7), seed).to(dtype).contiguous(memory_format=memory_format) for seed in (0, 1))
    mean = x.mean((0, 2, 3), dtype=torch.promote_types(dtype, torch.float32))
    found = [
        torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, mean.exp(), True, 1e-5, (False, True, True)
        )[1:]
        for weight in (None, torch.ones_like(mean))
    ]
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_of_one_event_the_gradient_is_right_whatever_its_strides(norm: str) -> None:
    """Tokens made of a map give it a gradient in channels-last order with a first stride of its own."""
    x = image((1, 3, 4, 5)).requires_grad_()

    def gradient(y: Tensor) -> Tensor:
        tokens = y.flatten(2).transpose(1, 2)
        loss = (tokens @ tokens.transpose(1, 2)).softmax(2) @ tokens
        return torch.autograd.grad((loss * image((1, 20, 3), 5)).sum(), x)[0]

    deviation = x - x.mean((2, 3), keepdim=True)
    by_hand = deviation / (deviation.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    per_sample = norm == "instance"
    parts = parts_of(x, per_sample=per_sample)
    statistics = statistics_of(x, parts, num_groups=3, group=Alone())
    y = normalise(x, statistics, None, None, 1e-5, parts=parts, group=Alone())
    torch.testing.assert_close(gradient(y), gradient(by_hand), rtol=1e-12, atol=1e-12)
