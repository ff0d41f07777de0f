"""What stands for norms on tiles: the statistics of the whole image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.ops.layer_norms import layer_norm_relu
from lartpc_ds.exact.ops.norms import Statistics, normalise, statistics_of

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "relu_norm"]

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """F.batch_norm in training, statistics and running buffers of the whole image.

    `whole`: of a map that every tile rank holds whole, so that statistics run over data at most. `relu`: a ReLU is all
    that reads the result, so it is applied here, and one map is kept instead of two (see `remade`). `owns_gradient`:
    the gradient that comes back is nobody else's.
    """

    whole: bool = False
    relu: bool = False
    owns_gradient: bool = False

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, function, *args, **kwargs)

    def _run(
        self,
        tiles: Tiles,
        function: Function,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            y: Tensor = function(input, running_mean, running_var, weight, bias, False, momentum, eps)
            return y
        group = tiles.whole_norm if self.whole else tiles.norm
        shape = input.shape  # of a whole tensor, any
        x = input if len(shape) == 4 else input.reshape(*shape[:2], -1, 1)
        remade = tiles.remade if self.relu else None
        statistics = statistics_of(x, num_groups=shape[1], per_sample=False, group=group)
        _update(running_mean, running_var, statistics, momentum)
        y = normalise(
            x,
            statistics,
            weight,
            bias,
            eps,
            per_sample=False,
            group=group,
            remade=remade,
            owns_gradient=self.owns_gradient,
        )
        # a reshape to the same shape would change the strides of a single event, and torch leave channels-last
        return y if x is input else y.reshape(shape)


def _update(mean: Tensor | None, variance: Tensor | None, statistics: Statistics, momentum: float) -> None:
    """As torch: unbiased with the count over all tiles; over several samples, the mean of theirs.

    Before the norm itself: a checkpoint of the user's own may end its second run as soon as the norm has saved its
    maps, and torch's kernels have then updated their statistics.
    """
    if mean is None or variance is None:
        return
    unbiased = statistics.variance * (statistics.pixels / (statistics.pixels - 1))
    for running, fresh in ((mean, statistics.mean), (variance, unbiased)):
        running.lerp_(fresh.mean(0).to(running.dtype), momentum)


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """F.group_norm; the fields as for a batch norm."""

    whole: bool = False
    relu: bool = False
    owns_gradient: bool = False

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, *args, **kwargs)

    def _run(
        self,
        tiles: Tiles,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        if input.is_cuda and torch.is_autocast_enabled("cuda"):
            input = input.float()  # as autocast does on CUDA, and not on CPU
        group, remade = Alone() if self.whole else tiles.group, tiles.remade if self.relu else None
        statistics = statistics_of(input, num_groups=num_groups, per_sample=True, group=group)
        return normalise(input, statistics, weight, bias, eps, per_sample=True, group=group, remade=remade)


@dataclass(frozen=True, slots=True)
class InstanceNorm:
    """F.instance_norm; the fields as for a batch norm."""

    whole: bool = False
    relu: bool = False
    owns_gradient: bool = False

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, function, *args, **kwargs)

    def _run(
        self,
        tiles: Tiles,
        function: Function,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not use_input_stats:
            y: Tensor = function(input, running_mean, running_var, weight, bias, False, momentum, eps)
            return y
        group, remade = Alone() if self.whole else tiles.group, tiles.remade if self.relu else None
        statistics = statistics_of(input, num_groups=input.shape[1], per_sample=True, group=group)
        _update(running_mean, running_var, statistics, momentum)
        return normalise(
            input,
            statistics,
            weight,
            bias,
            eps,
            per_sample=True,
            group=group,
            remade=remade,
            owns_gradient=self.owns_gradient,
        )


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """F.layer_norm and the ReLU that is all that reads it."""

    owns_gradient: bool = False

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """Every pixel for itself."""
        return self._run(tiles, *args, **kwargs)

    def _run(
        self,
        tiles: Tiles,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        if input.is_cuda and torch.is_autocast_enabled("cuda"):
            input = input.float()  # as autocast does on CUDA, and not on CPU
        return layer_norm_relu(input, list(normalized_shape), weight, bias, eps, tiles.remade, self.owns_gradient)


def relu_norm(name: str, *, whole: bool, owns_gradient: bool) -> Callable[..., Tensor]:
    """What stands for the torch function `name` where a ReLU is all that reads its result."""
    makers: dict[str, Callable[..., Tensor]] = {
        "batch_norm": BatchNorm(whole, True, owns_gradient),
        "group_norm": GroupNorm(whole, True, owns_gradient),
        "instance_norm": InstanceNorm(whole, True, owns_gradient),
        "layer_norm": LayerNorm(owns_gradient),
    }
    return makers[name]
