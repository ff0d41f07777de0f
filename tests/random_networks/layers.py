"""Layers with any of their options, drawn for a map of some channels."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

__all__ = ["LAYERS", "Call", "Counting"]


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *maps: Tensor) -> Tensor:
        return self.function(*maps)

    def extra_repr(self) -> str:
        return self.function.__name__


class Counting(nn.Module):
    """Grows with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class Moving(nn.Module):
    """Keeps a mean in a buffer, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moved", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.moved.clone()
        if self.training:
            self.moved.mul_(0.8).add_(0.1)
        return y


class Excitation(nn.Module):
    """Squeeze and excite: by linear layers, by convolutions of one pixel, or by a convolution over channels."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.inner: nn.Module = nn.Sequential(nn.Linear(channels, 2), nn.ReLU(), nn.Linear(2, channels))
        elif kind == "pointwise":
            self.inner = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1))
        else:
            self.inner = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return x * self.inner(x.mean((2, 3))).sigmoid()[:, :, None, None]
        if self.kind == "pointwise":
            return x * self.inner(nn.functional.adaptive_avg_pool2d(x, 1)).sigmoid()
        return x * self.inner(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]


class OfChannels(nn.Module):
    """A layer norm over channels, or a linear layer and its activation, in channels-last form."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Checkpointed(nn.Module):
    """A checkpoint of the user's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return y


class Scale(nn.Module):
    """A factor a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor[:, None, None]


def _pair(rng: Random, low: int, high: int) -> tuple[int, int]:
    return rng.randint(low, high), rng.randint(low, high)


def convolution(rng: Random, channels: int) -> nn.Module:
    groups = rng.choice([one for one in (1, 1, 1, 2, channels) if channels % one == 0])
    kernel = _pair(rng, 1, 4) if rng.random() < 0.4 else (3, 3)
    padding: Any = _pair(rng, 0, 3) if rng.random() < 0.3 else (kernel[0] // 2, kernel[1] // 2)
    stride = _pair(rng, 1, 3) if rng.random() < 0.3 else (1, 1)
    if stride == (1, 1) and rng.random() < 0.1:
        padding = "same"
    dilation = _pair(rng, 1, 2) if rng.random() < 0.2 else (1, 1)
    mode = rng.choice(["zeros"] * 60 + ["reflect", "replicate", "circular"])
    outputs = groups * rng.randint(1, max(1, 6 // groups))
    layer: nn.Module = nn.Conv2d(
        channels, outputs, kernel, stride, padding, dilation, groups, rng.random() < 0.6, padding_mode=mode
    )
    kind = rng.random()
    if kind < 0.06:
        return parametrizations.spectral_norm(layer)
    return parametrizations.weight_norm(layer) if kind < 0.1 else layer


def transposed_convolution(rng: Random, channels: int) -> nn.Module:
    stride, kernel = _pair(rng, 1, 2), _pair(rng, 1, 4)
    extra = rng.randint(0, stride[0] - 1), rng.randint(0, stride[1] - 1)
    return nn.ConvTranspose2d(channels, rng.randint(1, 5), kernel, stride, _pair(rng, 0, 1), extra)


def pool(rng: Random, channels: int) -> nn.Module:
    kernel, ceil = _pair(rng, 1, 3), rng.random() < 0.3
    stride = _pair(rng, 1, 2)
    padding = rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2)
    if rng.random() < 0.5:
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    divisor = rng.choice([None, None, 3])
    return nn.AvgPool2d(kernel, stride, padding, ceil, rng.random() < 0.5, divisor)


def norm(rng: Random, channels: int) -> nn.Module:
    kind, groups = rng.choice(["batch", "batch", "group", "instance", "layer"]), rng.choice([1, channels])
    statistics, momentum = rng.random() < 0.7, rng.choice([0.1, 0.3, None])
    layer: nn.Module
    if kind == "batch":
        layer = nn.BatchNorm2d(channels, momentum=momentum, track_running_stats=statistics)
    elif kind == "group":
        layer = nn.GroupNorm(groups, channels)
    elif kind == "instance":
        layer = nn.InstanceNorm2d(channels, affine=True, track_running_stats=not statistics)
    else:
        layer = nn.LayerNorm(channels)
    kept = rng.choice([("weight", "bias")] * 3 + [("weight",), ("bias",), ()])
    if kind == "group" and kept == ("bias",):
        kept = ()  # of which torch has no backward pass itself
    for name in ("weight", "bias"):
        if name in kept:
            nn.init.normal_(getattr(layer, name), 0.5, 0.5)
        else:
            setattr(layer, name, None)
    if kind == "batch" and statistics and rng.random() < 0.15:
        layer.eval()  # frozen
    return OfChannels(layer) if kind == "layer" else layer


def activation(rng: Random, channels: int) -> nn.Module:
    made = [nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.PReLU(rng.choice([1, channels]))]
    return rng.choice([*made, nn.Hardswish(), nn.ELU(), nn.Softplus(), nn.LeakyReLU(0.1), nn.Softmax(1), nn.Mish()])


def padding(rng: Random, channels: int) -> nn.Module:
    sides = tuple(rng.randint(-1, 2) for _ in range(4))
    kind = rng.choice(["zero"] * 12 + ["constant", "reflection", "replication"])
    if kind == "zero":
        return nn.ZeroPad2d(sides)
    if kind == "constant":
        return nn.ConstantPad2d(sides, 0.7)
    positive = tuple(max(side, 0) for side in sides)
    return nn.ReflectionPad2d(positive) if kind == "reflection" else nn.ReplicationPad2d(positive)


def resampling(rng: Random, channels: int) -> nn.Module:
    if channels % 4 == 0 and rng.random() < 0.4:
        return nn.PixelShuffle(2)
    mode = rng.choice(["nearest"] * 5 + ["bilinear"] * 8 + ["bicubic"])
    corners = {} if mode == "nearest" else {"align_corners": rng.random() < 0.1}
    return nn.Upsample(scale_factor=rng.choice([2, 2, 3, 1.5, 0.5]), mode=mode, **corners)


def whole_pool(rng: Random, channels: int) -> nn.Module:
    return Excitation(channels, rng.choice(["linear", "pointwise", "over channels"]))


def linear(rng: Random, channels: int) -> nn.Module:
    return OfChannels(nn.Sequential(nn.Linear(channels, 5), nn.GELU(), nn.Linear(5, channels)))


def checkpointed(rng: Random, channels: int) -> nn.Module:
    return Checkpointed(nn.Sequential(convolution(rng, channels), *([nn.ReLU()] if rng.random() < 0.5 else [])))


def checkpointed_norm(rng: Random, channels: int) -> nn.Module:
    return Checkpointed(nn.Sequential(norm(rng, channels), activation(rng, channels)))


def stateful(rng: Random, channels: int) -> nn.Module:
    return rng.choice([Counting, Moving])()


def scale(rng: Random, channels: int) -> nn.Module:
    return Scale(channels)


def local_response(rng: Random, channels: int) -> nn.Module:
    return nn.LocalResponseNorm(2)


LAYERS: list[tuple[int, Callable[[Random, int], nn.Module]]] = [
    (36, convolution),
    (32, norm),
    (20, activation),
    (12, pool),
    (8, transposed_convolution),
    (8, padding),
    (8, resampling),
    (8, whole_pool),
    (4, linear),
    (4, checkpointed),
    (4, checkpointed_norm),
    (4, stateful),
    (4, scale),
    (1, local_response),
]
"""(how often, what)."""
