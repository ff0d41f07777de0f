"""Batch, group and instance normalisation over the whole image of a tile group.

All three are one operation: statistics over some samples, a group of channels and all pixels of all tiles, weighted by
element counts, no halo pixel among them. A rank sends its means, squared deviations and count (Chan's combination, not
E[x^2] - E[x]^2, which cancels in low precision): one small message a norm and direction, never an activation.

Speed on CPU decides the rest. `torch.var_mean` of a bfloat16 map takes 30 times what `batch_norm_update_stats` takes,
and the fused evaluation kernel of batch norm applies any statistics; the two sums of the backward come from
`native_batch_norm_backward` when only the parameters' gradients are asked of it. The input's gradient is an affine map
of two maps, done in float32 on pieces that fit a core's cache: what the native kernel takes, and rounded once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.parallel.tiles import Group

__all__ = ["Statistics", "normalise"]

_PIECE_BYTES = {"cpu": 3 << 18, "meta": 1 << 62}
_PIECE_BYTES_OF_OTHERS = 1 << 26


class Statistics(NamedTuple):
    """Of one norm over all tiles: mean, biased variance, pixels a channel behind them; each (units, groups)."""

    mean: Tensor
    variance: Tensor
    pixels: Tensor


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    num_groups: int,
    per_sample: bool,
    group: Group,
) -> tuple[Tensor, Statistics]:
    """(x - mean) / sqrt(variance + eps) * weight + bias of a tile x (N, C, h, w), and the statistics.

    A unit is one sample, or with `per_sample` false all of them; a statistic is over one unit and C / num_groups
    channels.
    """
    y, mean, variance, count = _Normalise.apply(x, weight, bias, eps, num_groups, per_sample, group)  # type: ignore[no-untyped-call]
    return y, Statistics(mean, variance, count)


class _Normalise(torch.autograd.Function):
    """x (N, C, h, w), weight and bias (C) or None -> y like x; mean, variance, count (units, groups), no gradient.

    Gradients: (N, C, h, w) -> x's; weight's and bias's, of this tile's pixels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        num_groups: int,
        per_sample: bool,
        group: Group,
    ) -> tuple[Tensor, ...]:
        statistics = _combined(_local(x, num_groups, per_sample), group)
        ctx.eps, ctx.group, ctx.per_sample = eps, group, per_sample
        channels = x.shape[1] // num_groups
        mean = statistics.mean.repeat_interleave(channels, 1)
        variance = statistics.variance.repeat_interleave(channels, 1)
        parts = [
            torch.native_batch_norm(part, weight, bias, mean[unit], variance[unit], False, 0.0, eps)[0]
            for unit, part in _units(x, per_sample)
        ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        ctx.save_for_backward(x, weight, mean, variance, statistics.pixels)
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        x, weight, mean, variance, count = ctx.saved_tensors
        invstd = (variance + ctx.eps).rsqrt()
        sums = [
            torch.ops.aten.native_batch_norm_backward(
                gradient_part, part, None, None, None, mean[unit], invstd[unit], True, ctx.eps, (False, True, True)
            )[1:]
            for (unit, part), (_, gradient_part) in zip(
                _units(x, ctx.per_sample), _units(gradient, ctx.per_sample), strict=True
            )
        ]
        with_x, alone = (torch.stack(column) for column in zip(*sums, strict=True))  # (units, C)
        g_weight = with_x.sum(0).to(weight.dtype) if weight is not None else None
        g_bias = alone.sum(0).to(weight.dtype) if weight is not None else None
        if not ctx.needs_input_grad[0]:
            return None, g_weight, g_bias, None, None, None, None
        scale = invstd if weight is None else invstd * weight
        both = torch.stack([alone, with_x]) if weight is None else torch.stack([alone, with_x]) * weight
        groups, channels = count.shape[1], x.shape[1] // count.shape[1]
        grouped = both.reshape(2, both.shape[1], groups, channels).sum(3)
        over_all = ctx.group.all_reduce(grouped.contiguous()) / (count * channels)
        mean_gradient, mean_product = over_all.repeat_interleave(channels, 2)
        slope = -mean_product * invstd * invstd
        offset = -mean_gradient * invstd - slope * mean
        return _affine(gradient, x, scale, slope, offset), g_weight, g_bias, None, None, None, None


def _units(x: Tensor, per_sample: bool) -> Iterator[tuple[int, Tensor]]:
    return enumerate(torch.split(x, 1) if per_sample else [x])


def _local(x: Tensor, num_groups: int, per_sample: bool) -> Statistics:
    """This tile's statistics."""
    moments = []
    for _, part in _units(x, per_sample):
        dtype = torch.promote_types(part.dtype, torch.float32)
        # running buffers in float32 make the kernel answer in it; a momentum of 1 leaves nothing of them
        unused = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
        # torch has no meta form of this function, and all that a plan wants is the shape
        moments.append(
            unused if x.is_meta else torch.stack(torch.batch_norm_update_stats(part, unused[0], unused[1], 1.0))
        )
    mean, variance = torch.stack(moments).reshape(len(moments), 2, num_groups, -1).unbind(1)
    group_mean = mean.mean(2)
    between = (mean - group_mean[..., None]).square().mean(2)
    pixels = x.numel() / x.shape[1] / len(moments)
    return Statistics(group_mean, variance.mean(2) + between, torch.full_like(group_mean, pixels))


def _combined(local: Statistics, group: Group) -> Statistics:
    """Over all ranks; the same numbers in the same order everywhere, so that all ranks agree to the bit."""
    means, variances, counts = group.all_gather(torch.stack(local)).unbind(1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    deviations = (variances + (means - mean).square()) * counts
    return Statistics(mean, deviations.sum(0) / count, count)


def _affine(gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Gradient * scale + x * slope + offset, each factor (units, C), in float32 or better."""
    y = torch.empty_like(x)
    units = len(scale)
    factors = [factor[:, :, None, None] for factor in (scale, slope, offset)]
    piece_bytes = _PIECE_BYTES.get(x.device.type, _PIECE_BYTES_OF_OTHERS)
    rows = max(1, piece_bytes // max(1, x[0, :, 0].numel() * x.element_size()))
    for sample in range(len(x)):
        a, b, c = (factor[sample if units > 1 else 0] for factor in factors)
        for top in range(0, x.shape[2], rows):
            piece = (sample, slice(None), slice(top, top + rows))
            part = gradient[piece].to(a.dtype, copy=True)
            y[piece] = part.mul_(a).addcmul_(x[piece].to(a.dtype), b).add_(c)
    return y
