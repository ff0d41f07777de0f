"""Strips of random stacks of layers: exact, or refused because a strip would be empty, never anything else."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from tests.examples import examples
from tests.strip_parity import TOLERANCE, difference, streamed
from tests.tile_cases import every_window_reads
from tests.tile_parity import image, whole


class Residual(nn.Module):
    """Whose branch loses rows that the shortcut has."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        y += x
        return torch.cat([x, y], 1).mean(1, keepdim=True) * x


CHANNELS, COLUMNS = 4, 9
kernels, strides = st.integers(1, 7), st.integers(1, 4)


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """One layer of any geometry along the rows; columns keep a size that later layers can take."""
    kind = draw(st.sampled_from(["conv", "same", "max", "avg", "relu", "pad", "residual"]))
    kernel, stride, dilation = draw(kernels), draw(strides), draw(st.integers(1, 3))
    both = (kernel, 3), (stride, 1)
    if kind == "conv":
        padding, groups = (draw(st.integers(0, 5)), 1), draw(st.sampled_from([1, 2, 4]))
        return nn.Conv2d(CHANNELS, CHANNELS, *both, padding, (dilation, 1), groups)
    if kind in ("same", "residual"):
        conv = nn.Conv2d(CHANNELS, CHANNELS, (kernel, draw(st.integers(1, 4))), padding="same", dilation=dilation)
        return conv if kind == "same" else Residual(conv)
    if kind == "relu":
        return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU(inplace=True))
    if kind == "pad":
        return nn.ZeroPad2d((0, 0, draw(st.integers(0, 4)), draw(st.integers(0, 4))))
    ceil_mode = draw(st.booleans())
    if kind == "max":
        return nn.MaxPool2d(*both, (draw(st.integers(0, kernel // 2)), 1), (dilation, 1), ceil_mode=ceil_mode)
    padding, divisor = (draw(st.integers(0, kernel // 2)), 1), draw(st.sampled_from([None, 3]))
    return nn.AvgPool2d(*both, padding, ceil_mode, draw(st.booleans()), divisor)


EMPTY = ("fewer than strips", "without rows", "no row in common")


def runs(model: nn.Sequential, x: Tensor) -> bool:
    """Is every layer one that torch itself can run, and run right?"""
    try:
        for layer in model:
            if isinstance(layer, nn.MaxPool2d) and not every_window_reads(layer, x):
                return False
            x = layer(x)
    except RuntimeError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(examples(250), suppress_health_check=HealthCheck)
@given(st.lists(layers(), min_size=1, max_size=5), st.integers(1, 70), st.integers(2, 6), st.booleans())
def test_any_stack_is_exact_or_a_strip_would_be_empty(
    stack: list[nn.Module], rows: int, strips: int, channels_last: bool
) -> None:
    named = {**{f"block{number}": layer for number, layer in enumerate(stack)}, "rest": nn.Identity()}
    model = nn.Sequential(OrderedDict(named)).double()
    x = image((2, CHANNELS, rows, COLUMNS))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    assume(runs(model, x))
    try:
        numbers, _ = streamed(model, x, strips, "rest")
    except UserError as refusal:
        assert any(part in str(refusal) for part in EMPTY), refusal
        return
    assert difference(numbers, whole(model, x)) <= TOLERANCE
