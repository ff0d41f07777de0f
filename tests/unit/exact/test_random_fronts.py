"""Random fronts in strips: each is refused when it is planned, or runs and has the numbers of a plain run."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import plan_strips

CASES = 60


class _Front:
    """Layers with every option that torch has, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw, self.channels = random.Random(seed), 2
        kinds = (self._convolution, self._convolution, self._average, self._maximum, self._padding, self._residual)
        self.layers = [self.draw.choice(kinds)() for _ in range(self.draw.randint(1, 5))]

    def _pair(self, low: int, high: int) -> tuple[int, int]:
        return self.draw.randint(low, high), self.draw.randint(low, high)

    def _pool(self) -> tuple[tuple[int, int], tuple[int, int] | None, tuple[int, int]]:
        kernel = self._pair(1, 4)
        stride = self.draw.choice((None, self._pair(1, 3)))
        return kernel, stride, (self.draw.randint(0, kernel[0] // 2), self.draw.randint(0, kernel[1] // 2))

    def _convolution(self) -> nn.Module:
        before, self.channels = self.channels, self.draw.choice((2, 4, 6))
        padding = self.draw.choice(("same", "valid", 0, self._pair(0, 3), self._pair(0, 3)))
        stride = 1 if padding == "same" else self._pair(1, 3)
        kernel, dilation = (self.draw.randint(1, 5), self.draw.randint(1, 7)), self._pair(1, 2)
        groups, bias = self.draw.choice((1, 2)), self.draw.choice((False, True))
        return nn.Conv2d(before, self.channels, kernel, stride, padding, dilation, groups, bias)

    def _average(self) -> nn.Module:
        ceil, count, divisor = self.draw.choice((0, 1)), self.draw.choice((0, 1)), self.draw.choice((None, 3, 7))
        return nn.AvgPool2d(*self._pool(), bool(ceil), bool(count), divisor)

    def _maximum(self) -> nn.Module:
        return nn.MaxPool2d(*self._pool(), self._pair(1, 2), ceil_mode=self.draw.choice((False, True)))

    def _padding(self) -> nn.Module:
        return nn.ZeroPad2d((*self._pair(-2, 3), *self._pair(-1, 3)))

    def _residual(self) -> nn.Module:
        kernel = 2 * self.draw.randint(0, 2) + 1
        return _Residual(nn.Conv2d(self.channels, self.channels, kernel, padding=kernel // 2, groups=self.channels))


class _Residual(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(x))


def _numbers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Output and all gradients; of a parameter that the loss does not reach, zeros."""
    x = images.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return [y.detach(), x.grad, *grads]


def _outcome(seed: int) -> str:
    torch.manual_seed(seed)
    front, draw = _Front(seed), random.Random(-seed - 1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(front.channels, 3))
    model = nn.Sequential(*front.layers, head).double()
    size, strips = (draw.randint(5, 60), draw.randint(8, 24)), draw.choice((2, 3, 5, 9, 14))
    until = draw.choice(("auto", str(len(front.layers))))
    images = torch.randn(draw.choice((1, 2)), 2, *size, dtype=torch.float64)
    if draw.choice((False, True)):
        images = images.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            model(images)
    except RuntimeError:
        return "no network"
    try:
        plan = plan_strips(model, strips, until, (2, *size))
    except UserError as error:
        assert "memory." in str(error) or "crop no rows" in str(error), error  # says what to change
        return "refused"
    wanted = _numbers(copy.deepcopy(model), images)
    for one, other in zip(_numbers(stream(model, plan), images), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=f"seed {seed}")
    return "exact"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_random_front_that_is_accepted_runs_and_is_exact() -> None:
    outcomes = [_outcome(seed) for seed in range(CASES)]
    assert outcomes.count("exact") > CASES // 3, outcomes


def test_a_max_pool_with_a_window_of_padding_is_refused() -> None:
    """Torch corrupts its memory in the backward pass of such a pool, also without strips."""
    pool = nn.MaxPool2d(3, 3, 1, dilation=2, ceil_mode=True)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(2, 3))
    with pytest.raises(UserError, match=r"^0 .*max_pool2d has a window that reads padding only"):
        plan_strips(nn.Sequential(pool, head), 1, "1", (2, 1, 9))
    assert plan_strips(nn.Sequential(pool, head), 2, "1", (2, 12, 9)).front == ("0",)


@pytest.mark.parametrize("strips", [2, 3, 5])
def test_a_front_with_every_option_runs_and_is_exact(strips: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, (5, 7), (2, 1), (2, 3)),
        nn.AvgPool2d((3, 2), (2, 1), 1, ceil_mode=True, divisor_override=5),
        nn.MaxPool2d((2, 3), (1, 2), (1, 0), dilation=(2, 1), ceil_mode=True),
        nn.ZeroPad2d((-1, 2, 0, 1)),
        nn.Conv2d(4, 4, 3, 1, 1, groups=4),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 3)),
    ).double()
    images = torch.randn(2, 2, 61, 23, dtype=torch.float64)
    wanted = _numbers(copy.deepcopy(model), images)
    found = _numbers(stream(model, plan_strips(model, strips, "5", (2, 61, 23))), images)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
