"""Batch, group and instance normalisation run over the whole image of a tile group.

All three are one operation: statistics over some samples, a group of channels and all pixels of all tiles, weighted by
element counts, no halo pixel among them. A rank sends its means, squared deviations and count, in one small message per
norm and direction, and never an activation. They are combined as Chan does. Rejected: E[x^2] - E[x]^2, which cancels in
low precision.

Speed on a CPU decides the rest. `torch.var_mean` of a bfloat16 map takes 30 times what `batch_norm_update_stats` takes,
and the fused evaluation kernel of batch norm applies any statistics; the two sums of the backward come from
`native_batch_norm_backward` when only the parameters' gradients are asked of it. The input's gradient is an affine map
of two maps, done in float32 on pieces that fit a core's cache. That takes as long as the native kernel, and rounds
once.

With `remade`, a ReLU follows at once and only the norm's input is kept: the layer that reads the result saves a recipe
for it, and the backward makes it again piece by piece to see where the ReLU was open, into the memory of the gradient
that it returns.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.pieces import has_no_data, in_pieces, rows_at_once
from lartpc_ds.exact.grid.remade import Remade, own_copy
from lartpc_ds.exact.grid.tiles import Group

__all__ = ["Statistics", "normalise", "statistics_of"]


class Statistics(NamedTuple):
    """The statistics of one norm over all tiles: mean, biased variance and pixels per channel, each (units, groups)."""

    mean: Tensor
    variance: Tensor
    pixels: Tensor


@torch.no_grad()
def statistics_of(x: Tensor, *, num_groups: int, per_sample: bool, group: Group) -> Statistics:
    """Return the statistics of the whole image, of which this rank has the tile x (N, C, h, w).

    A unit is one sample, or all samples together where `per_sample` is false. A statistic is over one unit and C /
    num_groups channels.
    """
    return _combined(_local(x, num_groups, per_sample), group)


def normalise(
    x: Tensor,
    statistics: Statistics,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    per_sample: bool,
    group: Group,
    remade: Remade | None = None,
    owns_gradient: bool = False,
) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias, with the `statistics_of` x.

    With `remade` the result is relu(y), noted there. With `owns_gradient` nobody else holds the gradient that reaches
    it, so it is written over.
    """
    relu = remade is not None
    y: Tensor = _Normalise.apply(x, weight, bias, statistics, eps, per_sample, group, relu, owns_gradient)  # type: ignore[no-untyped-call]
    if remade is not None and torch.is_grad_enabled():
        affine = _Affine.of(statistics, x.shape[1], weight, bias, eps, per_sample)
        again = remade.again(x)
        remade.note(y, lambda: affine.of_map(again(), relu=True))
    return y


class _Affine(NamedTuple):
    """A norm whose statistics are known: mean and variance (units, C), weight and bias (C)."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    per_sample: bool

    @classmethod
    def of(
        cls,
        statistics: Statistics,
        channels: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        per_sample: bool,
    ) -> "_Affine":
        repeats = channels // statistics.mean.shape[1]
        mean, variance = (statistic.repeat_interleave(repeats, 1) for statistic in statistics[:2])
        return cls(mean, variance, own_copy(weight), own_copy(bias), eps, per_sample)

    def of_map(self, x: Tensor, *, relu: bool) -> Tensor:
        """Normalise a map (N, C, h, w)."""
        parts = [self.of_unit(unit, part, relu=relu) for unit, part in _units(x, self.per_sample)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def of_unit(self, unit: int, part: Tensor, *, relu: bool) -> Tensor:
        """Normalise some pixels of one unit."""
        mean, variance = self.mean[unit], self.variance[unit]
        y = torch.native_batch_norm(part, self.weight, self.bias, mean, variance, False, 0.0, self.eps)[0]
        return y.relu_() if relu else y


class _Normalise(Messenger):
    """x (N, C, h, w), weight and bias (C) or None, statistics of (units, groups) -> y like x.

    The gradient of x contains what goes through its statistics; those of weight and bias are of this tile's pixels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        per_sample: bool,
        group: Group,
        relu: bool,
        owns_gradient: bool,
    ) -> Tensor:
        ctx.eps, ctx.group, ctx.per_sample, ctx.relu, ctx.owns_gradient = eps, group, per_sample, relu, owns_gradient
        affine = _Affine.of(statistics, x.shape[1], weight, bias, eps, per_sample)
        ctx.save_for_backward(x, weight, bias, affine.mean, affine.variance, statistics.pixels)
        return affine.of_map(x, relu=relu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        x, gradient = _usual_strides(x), _usual_strides(gradients[0])
        affine = _Affine(mean, variance, weight, bias, ctx.eps, ctx.per_sample)
        invstd = (variance + ctx.eps).rsqrt()
        if ctx.relu:
            mine = ctx.owns_gradient and gradient.dtype == x.dtype
            masked = gradient if mine else torch.empty_like(x)
            with_x, alone = _through_relu(masked, gradient, x, affine, invstd)
            gradient = masked
        else:
            with_x, alone = _sums(gradient, x, affine, invstd)
        g_weight = None if weight is None else with_x.sum(0).to(weight.dtype)
        g_bias = None if bias is None else alone.sum(0).to(bias.dtype)
        if not ctx.needs_input_grad[0]:
            return None, g_weight, g_bias, *(None for _ in range(6))
        scale = invstd if weight is None else invstd * weight
        both = torch.stack([alone, with_x]) if weight is None else torch.stack([alone, with_x]) * weight
        groups, channels = count.shape[1], x.shape[1] // count.shape[1]
        grouped = both.reshape(2, both.shape[1], groups, channels).sum(3)
        over_all = ctx.group.all_reduce(grouped.contiguous()) / (count * channels)
        mean_gradient, mean_product = over_all.repeat_interleave(channels, 2)
        slope = -mean_product * invstd * invstd
        offset = -mean_gradient * invstd - slope * mean
        g_x = gradient if ctx.relu else torch.empty_like(x)
        return _combine(g_x, gradient, x, scale, slope, offset), g_weight, g_bias, *(None for _ in range(6))


def _usual_strides(x: Tensor) -> Tensor:
    """Give a single event its usual first stride.

    Any first stride is right for a single event, but with some of them torch's norms do not see that a map is
    channels-last.
    """
    return x.as_strided(x.shape, (x[0].numel(), *x.stride()[1:])) if len(x) == 1 else x


def _units(x: Tensor, per_sample: bool) -> Iterator[tuple[int, Tensor]]:
    return enumerate(torch.split(x, 1) if per_sample else [x])


def _local(x: Tensor, num_groups: int, per_sample: bool) -> Statistics:
    """Return this tile's statistics."""
    moments = []
    for _, part in _units(x, per_sample):
        dtype = torch.promote_types(part.dtype, torch.float32)
        # running buffers in float32 make the kernel answer in float32; a momentum of 1 leaves nothing of them
        unused = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
        # torch has no form of this function without data, and a plan only wants the shape
        moments.append(
            # a sum reads as many bytes, and a trace that counts seconds must see them
            unused + part.sum((0, 2, 3), dtype=dtype)
            if has_no_data(x)
            else torch.stack(torch.batch_norm_update_stats(part, unused[0], unused[1], 1.0))
        )
    mean, variance = torch.stack(moments).reshape(len(moments), 2, num_groups, -1).unbind(1)
    group_mean = mean.mean(2)
    between = (mean - group_mean[..., None]).square().mean(2)
    pixels = x.numel() / x.shape[1] / len(moments)
    return Statistics(group_mean, variance.mean(2) + between, torch.full_like(group_mean, pixels))


def _combined(local: Statistics, group: Group) -> Statistics:
    """Combine the statistics of all ranks, in the same order everywhere, so that all ranks agree to the bit."""
    means, variances, counts = group.all_gather(torch.stack(local)).unbind(1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    deviations = (variances + (means - mean).square()) * counts
    return Statistics(mean, deviations.sum(0) / count, count)


def _sums(gradient: Tensor, x: Tensor, affine: _Affine, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over pixels of gradient * (x - mean) * invstd, and of gradient; each (units, C)."""
    units = zip(_units(x, affine.per_sample), _units(gradient, affine.per_sample), strict=True)
    sums = [_sums_of_unit(unit, part_of_g, part, affine, invstd) for (unit, part), (_, part_of_g) in units]
    with_x, alone = (torch.stack(column) for column in zip(*sums, strict=True))
    return with_x, alone


def _sums_of_unit(unit: int, gradient: Tensor, x: Tensor, affine: _Affine, invstd: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones_like(invstd[unit])  # without a weight, CUDA has no type for the sums
    _, with_x, alone = torch.ops.aten.native_batch_norm_backward(
        gradient, x, ones, None, None, affine.mean[unit], invstd[unit], True, affine.eps, (False, True, True)
    )
    return with_x, alone


def _through_relu(
    masked: Tensor, gradient: Tensor, x: Tensor, affine: _Affine, invstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient where the ReLU was open into `masked`, which may be the gradient itself.

    Return its sums as `_sums` does.
    """
    with_x, alone = (torch.zeros_like(affine.mean) for _ in range(2))
    for unit, piece in _pieces(x, affine.per_sample):
        y = affine.of_unit(unit, x[piece], relu=False)
        masked[piece] = torch.ops.aten.threshold_backward(gradient[piece], y, 0)
        sums = _sums_of_unit(unit, masked[piece], x[piece], affine, invstd)
        with_x[unit] += sums[0]
        alone[unit] += sums[1]
    return with_x, alone


def _pieces(x: Tensor, per_sample: bool) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Yield (unit, where) for bands of rows that fit a cache."""
    rows = rows_at_once(x, x[0, :, 0].numel() * x.element_size())
    with in_pieces():
        for sample in range(len(x)):
            for top in range(0, x.shape[2], rows):
                yield sample if per_sample else 0, (slice(sample, sample + 1), slice(None), slice(top, top + rows))


def _combine(y: Tensor, gradient: Tensor, x: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Write gradient * scale + x * slope + offset into y, which may be the gradient, and return y.

    Each factor is (units, C), and the sum is done in float32.
    """
    factors = [factor[:, None, :, None, None] for factor in (scale, slope, offset)]
    for unit, piece in _pieces(x, len(scale) > 1):
        a, b, c = (factor[unit] for factor in factors)
        part = gradient[piece].to(a.dtype, copy=True)
        y[piece] = part.mul_(a).addcmul_(x[piece].to(a.dtype), b).add_(c)
    return y
