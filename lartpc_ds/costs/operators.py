"""The operators beside convolutions whose rates `lartpc-ds calibrate` measures: norms, ReLUs, pools, sums, copies.

They are called as a network calls them. The meter says which ATen operator that became on this device and how
many bytes it works on, in the words of `costs.roofline`, so a measured rate is found again under the same key.
Chosen by the bytes that training steps of our networks move, plain, with lean norms, recomputed and in tiles.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.costs.hardware import Precision
from lartpc_ds.costs.kernels import Sizes, Stopwatch
from lartpc_ds.costs.meter import Meter
from lartpc_ds.costs.roofline import DTYPES

__all__ = ["count_operators", "operator_rates"]

_CHANNELS = 64
_GROUPS = 8

Call = Callable[[], object]


def count_operators(call: Call) -> int:
    """How many operators a call runs, views apart; on a CPU those of its backward pass count, too."""
    meter = Meter()
    with meter:
        call()
    return meter.operators


def operator_rates(precision: Precision, sizes: Sizes, watch: Stopwatch) -> dict[Precision, dict[str, float]]:
    """The bytes that operators read and write per second, by the precision of the result and the operator's name."""
    rates: dict[Precision, dict[str, float]] = {}
    for call in _calls(DTYPES[precision], sizes.map_bytes, watch.device):
        with Meter() as meter:
            call()
        moved_bytes, found, name = meter.largest
        rates.setdefault(found, {})[name] = moved_bytes / watch.seconds(call)
    return rates


def _calls(dtype: torch.dtype, map_bytes: int, device: torch.device) -> Iterator[Call]:
    side = math.isqrt(map_bytes // (_CHANNELS * dtype.itemsize))
    x, other = (_map(side, dtype, device) for _ in range(2))
    yield from _pointwise(x, other)
    yield from _moving(x, other)
    yield from _norms(x)
    for forward in (
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x, 2, 2),
        torch.relu,
        F.gelu,
    ):
        yield from _both_ways(forward, x)


def _map(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    values = torch.rand(1, _CHANNELS, side, side, device=device) - 0.5
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def _both_ways(forward: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Iterator[Call]:
    yield lambda: forward(x, *weights)
    leaves = [one.detach().requires_grad_() for one in (x, *weights)]
    y = forward(*leaves)
    seed = torch.ones_like(y)
    yield lambda: torch.autograd.grad(y, leaves, seed, retain_graph=True)


def _pointwise(x: Tensor, other: Tensor) -> Iterator[Call]:
    scale = torch.full((1, _CHANNELS, 1, 1), 1e-3, dtype=x.dtype, device=x.device)
    yield lambda: x + other
    yield lambda: x * scale
    yield lambda: x / 2
    yield lambda: other.addcmul_(x, scale)


def _moving(x: Tensor, other: Tensor) -> Iterator[Call]:
    wanted = torch.bfloat16 if x.dtype == torch.float32 else torch.float32
    half = x[:, :, : x.shape[2] // 2]
    yield lambda: x.to(wanted)
    yield lambda: other.copy_(x)
    yield lambda: x.clone()
    yield lambda: torch.zeros_like(x)
    yield lambda: x.new_zeros(x.shape)
    yield lambda: other.zero_()
    yield lambda: other.fill_(1.0)
    yield lambda: torch.cat([half, half], 2)
    yield lambda: F.pad(x, (1, 1, 1, 1))
    yield lambda: x.sum((2, 3))
    yield lambda: x.mean((2, 3))


def _norms(x: Tensor) -> Iterator[Call]:
    """Batch, layer (over channels, as in ConvNeXt) and group norms; their weights are as autocast leaves them."""
    weight, bias = torch.ones(_CHANNELS, device=x.device), torch.zeros(_CHANNELS, device=x.device)
    mean, variance = torch.zeros_like(weight), torch.ones_like(weight)

    def batch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, training=True)

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (_CHANNELS,), weight, bias)

    def group(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, _GROUPS, weight, bias)

    yield from _both_ways(batch, x, weight, bias)
    yield lambda: torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, 1e-5)
    yield lambda: torch.batch_norm_update_stats(x, mean, variance, 0.1)
    sums = (x, x, weight, None, None, mean, variance, True, 1e-5, (False, True, True))
    yield lambda: torch.ops.aten.native_batch_norm_backward(*sums)
    if x.device.type == "cpu" or x.dtype == torch.float32:  # CUDA's autocast runs these in fp32
        yield from _both_ways(layer, x, weight, bias)
        yield from _both_ways(group, x, weight, bias)
