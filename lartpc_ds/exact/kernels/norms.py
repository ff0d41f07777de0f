"""Batch, group and instance normalisation run over the whole image of a tile group.

All three are one operation: statistics over some samples, a group of channels and all pixels of all tiles, weighted by
element counts, no halo pixel among them. A rank sends its means, squared deviations and count, in one small message per
norm and direction, and never an activation. They are combined as Chan does (The American Statistician 37, 1983, 242).
Rejected: E[x^2] - E[x]^2, which cancels in low precision.

Speed on a CPU decides the rest. `torch.var_mean` of a bfloat16 map takes 30 times what `batch_norm_update_stats` takes,
and the fused evaluation kernel of batch norm applies any statistics; the two sums of the backward come from
`native_batch_norm_backward` when only the parameters' gradients are asked of it. The input's gradient is an affine map
of two maps, done in float32 on pieces that fit a core's cache. That takes as long as the native kernel, and rounds
once.

With `remade`, a ReLU follows at once and only the norm's input is kept: the layer that reads the result saves a recipe
for it, and the backward makes it again piece by piece to see where the ReLU was open, into the memory of the gradient
that it returns.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.pieces import has_no_data, in_pieces, rows_at_once
from lartpc_ds.exact.grid.remade import Remade, own_copy
from lartpc_ds.exact.grid.tiles import Group

__all__ = ["Part", "Statistics", "normalise", "parts_of", "statistics_of"]


class Part(NamedTuple):
    """Some maps of a batch that share their statistics.

    A unit is one sample, or all samples together, and may have several parts.
    """

    unit: int
    maps: slice
    """Where the maps are in the batch."""
    pixels: Tensor | None = None
    """For how many pixels of the whole image each pixel stands, (maps, 1, h, w); None means one each."""


def parts_of(x: Tensor, *, per_sample: bool) -> list[Part]:
    """Return one part for each sample of a batch, or one for all."""
    return [Part(n, slice(n, n + 1)) for n in range(len(x))] if per_sample else [Part(0, slice(0, len(x)))]


class Statistics(NamedTuple):
    """The statistics of one norm over all tiles: mean, biased variance and pixels per channel, each (units, groups)."""

    mean: Tensor
    variance: Tensor
    pixels: Tensor


@torch.no_grad()
def statistics_of(x: Tensor, parts: Sequence[Part], *, num_groups: int, group: Group) -> Statistics:
    """Return the statistics of the whole image, of which this rank has the tile x (N, C, h, w).

    `parts` go through the batch in its order. A statistic is over one unit and C / num_groups channels.
    """
    return _combined(_local(x, parts, num_groups), group)


def normalise(
    x: Tensor,
    statistics: Statistics,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    parts: Sequence[Part],
    group: Group,
    remade: Remade | None = None,
    owns_gradient: bool = False,
) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias, with the `statistics_of` x.

    With `remade` the result is relu(y), noted there. With `owns_gradient` nobody else holds the gradient that reaches
    it, so it is written over.
    """
    relu = remade is not None
    y: Tensor = _Normalise.apply(x, weight, bias, statistics, eps, parts, group, relu, owns_gradient)  # type: ignore[no-untyped-call]
    if remade is not None and torch.is_grad_enabled():
        affine = _Affine.of(statistics, x.shape[1], weight, bias, eps, parts)
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
    parts: Sequence[Part]

    @classmethod
    def of(
        cls,
        statistics: Statistics,
        channels: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        parts: Sequence[Part],
    ) -> "_Affine":
        repeats = channels // statistics.mean.shape[1]
        mean, variance = (statistic.repeat_interleave(repeats, 1) for statistic in statistics[:2])
        return cls(mean, variance, own_copy(weight), own_copy(bias), eps, parts)

    def of_map(self, x: Tensor, *, relu: bool) -> Tensor:
        """Normalise a map (N, C, h, w)."""
        made = [self.of_unit(part.unit, x[part.maps], relu=relu) for part in self.parts]
        return made[0] if len(made) == 1 else torch.cat(made)

    def of_unit(self, unit: int, part: Tensor, *, relu: bool) -> Tensor:
        """Normalise some pixels of one unit."""
        mean, variance = self.mean[unit], self.variance[unit]
        y = torch.native_batch_norm(part, self.weight, self.bias, mean, variance, False, 0.0, self.eps)[0]
        return y.relu_() if relu else y


class _Normalise(Messenger):
    """x (N, C, h, w), weight and bias (C) or None, statistics of (units, groups) -> y like x.

    The gradient of x contains what goes through its statistics; those of weight and bias are of this tile's pixels. If
    a pixel stands for several, the sums of the gradient need no counts, because its gradient is the sum of theirs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        parts: Sequence[Part],
        group: Group,
        relu: bool,
        owns_gradient: bool,
    ) -> Tensor:
        ctx.eps, ctx.group, ctx.parts, ctx.relu, ctx.owns_gradient = eps, group, parts, relu, owns_gradient
        affine = _Affine.of(statistics, x.shape[1], weight, bias, eps, parts)
        ctx.save_for_backward(x, weight, bias, affine.mean, affine.variance, statistics.pixels)
        return affine.of_map(x, relu=relu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        x, gradient = _usual_strides(x), _usual_strides(gradients[0])
        affine = _Affine(mean, variance, weight, bias, ctx.eps, ctx.parts)
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
        return _combine(g_x, gradient, x, affine, scale, slope, offset), g_weight, g_bias, *(None for _ in range(6))


def _usual_strides(x: Tensor) -> Tensor:
    """Give a single event its usual first stride.

    Any first stride is right for a single event, but with some of them torch's norms do not see that a map is
    channels-last.
    """
    return x.as_strided(x.shape, (x[0].numel(), *x.stride()[1:])) if len(x) == 1 else x


def _local(x: Tensor, parts: Sequence[Part], num_groups: int) -> Statistics:
    """Return this tile's statistics."""
    units: dict[int, list[Tensor]] = {}
    for part in parts:
        units.setdefault(part.unit, []).append(_moments(x[part.maps], part.pixels))
    moments = [units[unit] for unit in range(len(units))]
    of_units = [unit[0] if len(unit) == 1 else torch.stack(_pooled(torch.stack(unit))) for unit in moments]
    mean, variance, pixels = torch.stack(of_units).reshape(len(units), 3, num_groups, -1).unbind(1)
    group_mean = mean.mean(2)
    between = (mean - group_mean[..., None]).square().mean(2)
    return Statistics(group_mean, variance.mean(2) + between, pixels[..., 0].clone())


def _moments(x: Tensor, pixels: Tensor | None) -> Tensor:
    """Return the mean, the biased variance and the number of pixels of each channel, (3, C)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if pixels is not None:
        counts, values = pixels.to(dtype), x.to(dtype)
        total = counts.sum()
        mean = (values * counts).sum((0, 2, 3)) / total
        variance = ((values - mean[:, None, None]).square() * counts).sum((0, 2, 3)) / total
        return torch.stack([mean, variance, total.expand_as(mean)])
    # running buffers in float32 make the kernel answer in float32; a momentum of 1 leaves nothing of them
    unused = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    # torch has no form of this function without data, and a plan only wants the shape
    moments = (
        # a sum reads as many bytes, and a trace that counts seconds must see them
        unused + x.sum((0, 2, 3), dtype=dtype)
        if has_no_data(x)
        else torch.stack(torch.batch_norm_update_stats(x, unused[0], unused[1], 1.0))
    )
    return torch.cat([moments, torch.full_like(moments[:1], x.numel() / x.shape[1])])


def _combined(local: Statistics, group: Group) -> Statistics:
    """Combine the statistics of all ranks, in the same order everywhere, so that all ranks agree to the bit."""
    return _pooled(group.all_gather(torch.stack(local)))


def _pooled(statistics: Tensor) -> Statistics:
    """(n, 3, ...) -> the statistics of the pixels of all n together."""
    means, variances, counts = statistics.unbind(1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    deviations = (variances + (means - mean).square()) * counts
    return Statistics(mean, deviations.sum(0) / count, count)


def _sums(gradient: Tensor, x: Tensor, affine: _Affine, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over pixels of gradient * (x - mean) * invstd, and of gradient; each (units, C)."""
    with_x, alone = (torch.zeros_like(invstd) for _ in range(2))
    for part in affine.parts:
        sums = _sums_of_unit(part.unit, gradient[part.maps], x[part.maps], affine, invstd)
        with_x[part.unit] += sums[0]
        alone[part.unit] += sums[1]
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
    for unit, piece, _ in _pieces(x, affine.parts):
        y = affine.of_unit(unit, x[piece], relu=False)
        masked[piece] = torch.ops.aten.threshold_backward(gradient[piece], y, 0)
        sums = _sums_of_unit(unit, masked[piece], x[piece], affine, invstd)
        with_x[unit] += sums[0]
        alone[unit] += sums[1]
    return with_x, alone


def _pieces(x: Tensor, parts: Sequence[Part]) -> Iterator[tuple[int, tuple[slice, slice, slice], Tensor | None]]:
    """Yield (unit, where, pixels) for bands of rows, or for several maps, that fit a cache."""
    rows = rows_at_once(x, x[0, :, 0].numel() * x.element_size())
    at_once = max(1, rows // x.shape[2])
    with in_pieces():
        for unit, maps, pixels in parts:
            for first in range(maps.start, maps.stop, at_once):
                some = slice(first, min(first + at_once, maps.stop))
                theirs = None if pixels is None else pixels[some.start - maps.start : some.stop - maps.start]
                for top in range(0, x.shape[2], rows):
                    band = slice(top, top + rows)
                    yield unit, (some, slice(None), band), None if theirs is None else theirs[:, :, band]


def _combine(
    y: Tensor, gradient: Tensor, x: Tensor, affine: _Affine, scale: Tensor, slope: Tensor, offset: Tensor
) -> Tensor:
    """Write gradient * scale + (x * slope + offset) * pixels into y, which may be the gradient, and return y.

    Each factor is (units, C), and the sum is done in float32. The gradient of a pixel that stands for several is the
    sum of theirs already, and what reaches it through the statistics is as much again for each of them.

    With g for a gradient, w for `pixels`, N = sum w and xhat = (x - mean) / sigma, this is (docs/lit.md derives it)

        dx = gamma / sigma * (g - w / N * (sum g + xhat * sum g xhat))
    """
    factors = [factor[:, None, :, None, None] for factor in (scale, slope, offset)]
    for unit, piece, pixels in _pieces(x, affine.parts):
        a, b, c = (factor[unit] for factor in factors)
        part = gradient[piece].to(a.dtype, copy=True).mul_(a)
        if pixels is None:
            y[piece] = part.addcmul_(x[piece].to(a.dtype), b).add_(c)
        else:
            y[piece] = part.addcmul_(x[piece].to(a.dtype).mul(b).add_(c), pixels.to(a.dtype))
    return y
