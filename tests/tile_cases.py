"""What a sweep over layers draws from: images, grids and layers with every option that torch has.

Sizes run from one pixel up, so that tiles are thinner than windows, strides do not divide anything, and some tiles
would be empty.
"""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = [
    "GRIDS",
    "Image",
    "agrees_with_itself",
    "average_pools",
    "convolutions",
    "every_window_reads",
    "images",
    "max_pools",
    "transposed_convolutions",
]

GRIDS = [(2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 2)]
CHANNELS = [(2, 3, 1), (4, 4, 4), (4, 6, 2), (3, 6, 3)]
"""In, out, groups: dense, depthwise, grouped, depthwise with a multiplier."""


class Image(NamedTuple):
    """How to make an image: a failing example prints this, not its pixels."""

    shape: tuple[int, int, int, int]
    seed: int
    ties: bool
    channels_last: bool

    def make(self) -> Tensor:
        """(events, channels, rows, columns) in float64; with `ties`, of a few integers."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.ties:
            x = torch.randint(0, 3, self.shape, generator=generator).double()
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


@st.composite
def images(draw: st.DrawFn, channels: int, largest: int = 70, ties: bool = False, least: int = 1) -> Image:
    """Of 1 to 3 events; with `ties`, half of them of a few integers."""
    batch, rows, cols = (draw(st.integers(low, high)) for low, high in ((1, 3), (least, largest), (least, largest)))
    return Image(
        (batch, channels, rows, cols), draw(st.integers(0, 9)), ties and draw(st.booleans()), draw(st.booleans())
    )


def _pairs(draw: st.DrawFn, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    inputs, outputs, groups = draw(st.sampled_from(CHANNELS))
    kernel, stride, dilation = _pairs(draw, 1, 7), _pairs(draw, 1, 4), _pairs(draw, 1, 3)
    padding: str | tuple[int, int] = (draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1])))
    if draw(st.integers(0, 3)) == 0:
        padding = draw(st.sampled_from(["same", "valid"]))
        stride = (1, 1) if padding == "same" else stride
    bias = draw(st.booleans())
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias, dtype=torch.float64)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> nn.ConvTranspose2d:
    inputs, outputs, groups = draw(st.sampled_from(CHANNELS))
    kernel, stride, dilation = _pairs(draw, 1, 7), _pairs(draw, 1, 4), _pairs(draw, 1, 3)
    padding = draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1]))
    extra = [draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)]
    bias = draw(st.booleans())
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride, padding, (extra[0], extra[1]), groups, bias, dilation, dtype=torch.float64
    )


@st.composite
def max_pools(draw: st.DrawFn) -> nn.MaxPool2d:
    kernel = _pairs(draw, 1, 7)
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    stride = draw(st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    stride = kernel if stride is None else stride
    return nn.MaxPool2d(kernel, stride, padding, _pairs(draw, 1, 2), ceil_mode=draw(st.booleans()))


@st.composite
def average_pools(draw: st.DrawFn) -> nn.AvgPool2d:
    kernel = _pairs(draw, 1, 7)
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    stride = draw(st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    divisor = draw(st.one_of(st.none(), st.integers(1, 9)))
    return nn.AvgPool2d(kernel, stride, padding, draw(st.booleans()), draw(st.booleans()), divisor)


def every_window_reads(pool: nn.MaxPool2d, x: Tensor) -> bool:
    """Torch's own backward goes astray, even crashes, where a dilated window lies outside the image altogether."""
    outputs = pool(x).shape[2:]
    kernel, stride, padding, dilation = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    for axis in (0, 1):
        for out in range(outputs[axis]):
            start = out * stride[axis] - padding[axis]
            if not any(0 <= start + dilation[axis] * k < x.shape[2 + axis] for k in range(kernel[axis])):
                return False
    return True


def agrees_with_itself(resample: nn.Upsample, x: Tensor) -> bool:
    """Torch's nearest pixel depends on the precision of its arithmetic where a ratio falls on a pixel's edge.

    In float64 its own backward pass even takes another one than its forward pass.
    """
    rows, cols = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    ramp = (rows[:, None] * 100 + cols)[None, None]
    return torch.equal(resample(ramp.float()).double(), resample(ramp.double())) or resample.mode == "bilinear"
