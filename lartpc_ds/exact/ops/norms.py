"""Norms run on tiles with the statistics of the whole image, and may take the ReLU that follows them (lean norms).

On strips a norm must act on every pixel by itself, or have running statistics. On patches the statistics count every
pixel as often as it occurs. Rejected: statistics over all strips, for each of which all strips would have to run once
more.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lartpc_ds.exact.grid.cuts import Function, Run
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.tiles import Alone, Group, Tiles
from lartpc_ds.exact.kernels.layer_norms import layer_norm_relu
from lartpc_ds.exact.kernels.norms import Part, Statistics, normalise, parts_of, statistics_of
from lartpc_ds.exact.kernels.patches import pixel_counts
from lartpc_ds.exact.ops.operator import (
    CallSite,
    Operator,
    PatchCallSite,
    Result,
    StripCallSite,
    TileCallSite,
    cut_dims,
    map_cut,
    map_patches,
    map_rows,
)

__all__ = ["OPERATORS", "SWEEP", "BatchNorm", "LayerNorm", "statistics_on_strips"]

SWEEP = (
    "takes statistics over the whole map; each would need a sweep over all strips of its own. Norms of the streamed "
    "front must act per pixel or be frozen: --set model.norm=layer, an earlier memory.stream_until, or "
    "memory.stream_strips = 1"
)


class _BatchNorm(NamedTuple):
    """The arguments of F.batch_norm."""

    input: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _InstanceNorm(NamedTuple):
    """The arguments of F.instance_norm."""

    input: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    use_input_stats: bool = True
    momentum: float = 0.1
    eps: float = 1e-5


class _GroupNorm(NamedTuple):
    """The arguments of F.group_norm."""

    input: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


_Arguments = _BatchNorm | _InstanceNorm | _GroupNorm


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm over pixels of this rank's tile, with the statistics of the whole image."""

    whole: bool = False
    """Whether every tile rank holds the whole map, so that statistics run over the data axis at most."""
    relu: bool = False
    """Whether the norm applies the ReLU that follows it, which must be all that reads its result.

    Then one map is kept instead of two (see `grid.remade`).
    """
    owns_gradient: bool = False
    """Whether nobody else holds the gradient that comes back, so that it may be written over."""

    def _normalised(
        self,
        tiles: Tiles,
        x: Tensor,
        given: _Arguments,
        group: Group,
        groups: int,
        parts: Sequence[Part],
    ) -> Tensor:
        statistics = statistics_of(x, parts, num_groups=groups, group=group)
        if not isinstance(given, _GroupNorm):
            _move_running(given, statistics)
        return normalise(
            x,
            statistics,
            given.weight,
            given.bias,
            given.eps,
            parts=parts,
            group=group,
            remade=tiles.remade if self.relu else None,
            owns_gradient=self.owns_gradient,
        )


def _move_running(given: _BatchNorm | _InstanceNorm, statistics: Statistics) -> None:
    """Move running statistics as torch does.

    The variance is unbiased, with the count over all tiles, and the statistics of several samples are averaged. This
    comes before the norm itself: a checkpoint of the user's own may end its second run as soon as the norm has saved
    its maps, and torch's kernels have then updated their statistics.
    """
    if given.running_mean is None or given.running_var is None:
        return
    unbiased = statistics.variance * (statistics.pixels / (statistics.pixels - 1))
    for running, fresh in ((given.running_mean, statistics.mean), (given.running_var, unbiased)):
        running.lerp_(fresh.mean(0).to(running.dtype), given.momentum)


@dataclass(frozen=True, slots=True)
class BatchNorm(_Norm):
    """F.batch_norm; in training its statistics and running buffers are those of the whole image."""

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of this rank's tile, or of any whole tensor."""
        given = _BatchNorm(*args, **kwargs)
        if not given.training:
            return function(*given)  # type: ignore[no-any-return]
        x, shape = given.input, given.input.shape
        four = x if len(shape) == 4 else x.reshape(*shape[:2], -1, 1)
        group = tiles.whole_norm if self.whole else tiles.norm
        y = self._normalised(tiles, four, given, group, shape[1], parts_of(four, per_sample=False))
        # a reshape to the same shape would change the strides of a single event, and torch would leave channels-last
        return y if four is x else y.reshape(shape)


@dataclass(frozen=True, slots=True)
class InstanceNorm(_Norm):
    """F.instance_norm, with the statistics of the whole image."""

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        given = _InstanceNorm(*args, **kwargs)
        if not given.use_input_stats:
            return function(*given)  # type: ignore[no-any-return]
        group = Alone() if self.whole else tiles.group
        x = given.input
        return self._normalised(tiles, x, given, group, x.shape[1], parts_of(x, per_sample=True))


@dataclass(frozen=True, slots=True)
class GroupNorm(_Norm):
    """F.group_norm, with the statistics of the whole image."""

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of this rank's tile."""
        given, group = _GroupNorm(*args, **kwargs), Alone() if self.whole else tiles.group
        x = _autocast(given.input)
        return self._normalised(tiles, x, given, group, given.num_groups, parts_of(x, per_sample=True))


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """F.layer_norm and the ReLU that is all that reads it; every pixel is normalised by itself."""

    owns_gradient: bool = False

    def __call__(
        self,
        tiles: Tiles,
        function: Function,
        /,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """Return the outputs of any map."""
        x = _autocast(input)
        return layer_norm_relu(x, list(normalized_shape), weight, bias, eps, tiles.remade, self.owns_gradient)


def _autocast(x: Tensor) -> Tensor:
    """Do what autocast does to group and layer norms on CUDA, and does not do on a CPU."""
    return x.float() if x.is_cuda and torch.is_autocast_enabled("cuda") else x


def batch_norm_on_whole(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan tensors that every tile rank holds whole, whose statistics run over the data axis at most."""
    return function(*args, **kwargs), BatchNorm(whole=True)


def _on_tiles(run: Callable[[], Run]) -> Callable[..., Result]:
    def rule(site: TileCallSite, function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Result:
        cut = map_cut(site, input)
        return site.mark(function(input, *args, **kwargs), cut), run()

    return rule


def batch_norm_on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run a norm with running statistics that are frozen, and refuse any other."""
    given = _BatchNorm(*args, **kwargs)
    if given.training or given.running_mean is None:
        raise site.refuse(SWEEP)
    return site.mark_rows(function(*given), map_rows(site, given.input)), None


def statistics_on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Refuse whatever takes statistics over the map."""
    raise site.refuse(SWEEP)


def batch_norm_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run a batch norm over all events."""
    given = _BatchNorm(*args, **kwargs)
    patches, x = map_patches(site, given.input), given.input
    if not given.training:
        return site.mark_patches(function(*given), patches), None
    parts = _parts_of_patches(patches, x, per_event=False)
    norm = _planned(site, "batch_norm", BatchNorm())
    y = norm._normalised(site.tiles, x, given, site.tiles.norm, x.shape[1], parts)
    return site.mark_patches(y, patches), None


def group_norm_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run a group norm over each event."""
    given = _GroupNorm(*args, **kwargs)
    patches, x = map_patches(site, given.input), _autocast(given.input)
    parts = _parts_of_patches(patches, x, per_event=True)
    return site.mark_patches(
        _planned(site, "group_norm", GroupNorm())._normalised(site.tiles, x, given, Alone(), given.num_groups, parts),
        patches,
    ), None


def instance_norm_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run an instance norm over each event."""
    given = _InstanceNorm(*args, **kwargs)
    patches, x = map_patches(site, given.input), given.input
    if not given.use_input_stats:
        return site.mark_patches(function(*given), patches), None
    parts = _parts_of_patches(patches, x, per_event=True)
    return site.mark_patches(
        _planned(site, "instance_norm", InstanceNorm())._normalised(site.tiles, x, given, Alone(), x.shape[1], parts),
        patches,
    ), None


NormRun = TypeVar("NormRun", bound=_Norm)


def _planned(site: PatchCallSite, name: str, plain: NormRun) -> NormRun:
    """Return the norm that takes the ReLU after it, if that is planned for the call at hand, or else the plain one."""
    run = site.lean_run(name)
    return run if isinstance(run, type(plain)) else plain


def _parts_of_patches(patches: Patches, x: Tensor, *, per_event: bool) -> list[Part]:
    """Return the special patches, whose pixels count several times or not at all, and the plain ones."""
    pixels, (special, plain) = pixel_counts(patches, x), patches.bounds_of_events()
    if not per_event:
        special, plain = special[[0, -1]], plain[[0, -1]]
    counted = [(slice(*bounds), True) for bounds in itertools.pairwise(special.tolist())]
    counted += [(slice(*bounds), False) for bounds in itertools.pairwise(plain.tolist())]
    return [
        Part(number % (len(special) - 1), maps, pixels[maps] if several else None)
        for number, (maps, several) in enumerate(counted)
        if maps.start < maps.stop
    ]


def layer_norm(
    site: CallSite, function: Function, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Result:
    """Run over trailing dimensions that are not cut: every pixel is normalised by itself."""
    dims = cut_dims(site, input)
    if max(dims) >= input.ndim - len(normalized_shape):
        raise site.refuse(
            f"runs over {site.words.lines}; on {site.words.parts} a layer norm must act per pixel, over channels in "
            f"the last dimension; {site.words.way_out}"
        )
    return site.cut_like(function(input, normalized_shape, *args, **kwargs), input, dims), None


def _lean_layer_norm(*, whole: bool, owns_gradient: bool) -> LayerNorm:
    return LayerNorm(owns_gradient)


OPERATORS = {
    "batch_norm": Operator(
        on_tiles=_on_tiles(BatchNorm),
        on_whole=batch_norm_on_whole,
        on_strips=batch_norm_on_strips,
        on_patches=batch_norm_on_patches,
        with_relu=partial(BatchNorm, relu=True),
    ),
    "group_norm": Operator(
        on_tiles=_on_tiles(GroupNorm),
        on_strips=statistics_on_strips,
        on_patches=group_norm_on_patches,
        with_relu=partial(GroupNorm, relu=True),
    ),
    "instance_norm": Operator(
        on_tiles=_on_tiles(InstanceNorm),
        on_strips=statistics_on_strips,
        on_patches=instance_norm_on_patches,
        with_relu=partial(InstanceNorm, relu=True),
    ),
    "layer_norm": Operator(
        on_tiles=layer_norm, on_strips=layer_norm, on_patches=layer_norm, with_relu=_lean_layer_norm
    ),
}
