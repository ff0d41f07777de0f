"""What stands for each spatial torch function on tiles, with the signature of the function it stands for.

Every class here is a frozen value made while the model is traced: it knows the whole map's cut before and after, and
computes this rank's part when it is called. Two calls are the same operator if they are equal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from lartpc_ds.exact.grid.cuts import Cut, Plans, Run, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Rect
from lartpc_ds.exact.ops.convolution import Geometry, convolve
from lartpc_ds.exact.ops.halo import padded
from lartpc_ds.exact.ops.pooling import max_pool
from lartpc_ds.exact.ops.reductions import own_part
from lartpc_ds.layout import Bounds

__all__ = [
    "AveragePool",
    "Convolution",
    "Gather",
    "MaxPool",
    "Pad",
    "Realign",
    "Remake",
    "TransposedConvolution",
    "Unfold",
    "outputs_of",
]

Function = Callable[..., Any]
Pair = tuple[int, int]
OutBounds = tuple[Bounds, Bounds]


def outputs_of(bounds: OutBounds, tiles: Tiles) -> Rect:
    """What this rank owns of a map that is cut at `bounds`."""
    (rows, cols), r, c = bounds, tiles.row, tiles.col
    return Rect((rows[r], rows[r + 1]), (cols[c], cols[c + 1]))


@dataclass(frozen=True, slots=True)
class Convolution:
    """F.conv2d."""

    plans: Plans
    bounds: OutBounds
    geometry: Geometry

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, *args, **kwargs)

    def _run(
        self,
        tiles: Tiles,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        groups = input.shape[1] // weight.shape[1]
        x, weight, bias = _autocast(input, weight, bias)
        outputs = outputs_of(self.bounds, tiles).shape
        return convolve(tiles, view_of(self.plans, tiles), self.geometry, outputs, x, weight, bias, groups)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What torch.autocast does to a convolution's tensors; it does not reach into autograd functions."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@dataclass(frozen=True, slots=True)
class Remake:
    """F.conv2d, or `run` in its place, whose result need not be kept: it is made again from its small input."""

    run: Run | None

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, function, *args, **kwargs)

    def _run(
        self,
        tiles: Tiles,
        function: Function,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        x, weight, bias = _autocast(input, weight, bias)

        def made(weight: Tensor, bias: Tensor | None) -> Tensor:
            everything = (x, weight, bias, *args)
            y: Tensor = (
                function(*everything, **kwargs) if self.run is None else self.run(tiles, function, everything, kwargs)
            )
            return y

        y = made(weight, bias)
        if not torch.is_grad_enabled():
            return y
        # with weights of its own: a sharding engine takes a parameter's away before a later layer asks for the map
        own_weight, own_bias = weight.detach().clone(), None if bias is None else bias.detach().clone()
        return tiles.remade.note(y, torch.no_grad()(lambda: made(own_weight, own_bias)))


@dataclass(frozen=True, slots=True)
class TransposedConvolution:
    """F.conv_transpose2d: torch's own on the inputs that reach this rank's outputs, cut to them."""

    plans: Plans
    bounds: OutBounds
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, *args, **kwargs)

    def _run(
        self, tiles: Tiles, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        here = view_of(self.plans, tiles)
        x = padded(tiles, input, here)
        y = F.conv_transpose2d(x, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        pads: list[int] = []
        for axis, wanted in enumerate(outputs_of(self.bounds, tiles)):
            start = here.need[axis][0] * self.stride[axis] - self.padding[axis]
            pads = [start - wanted[0], wanted[1] - start - y.shape[2 + axis], *pads]
        # first more, then less: where no input reaches the outputs, they lie beside y altogether
        for some in ([max(pad, 0) for pad in pads], [min(pad, 0) for pad in pads]):
            y = F.pad(y, some) if any(some) else y
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]


@dataclass(frozen=True, slots=True)
class MaxPool:
    """F.max_pool2d: outside the image is minus infinity, for torch as for us."""

    plans: Plans
    bounds: OutBounds
    geometry: Geometry

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        x = args[0] if args else kwargs["input"]
        return max_pool(tiles, view_of(self.plans, tiles), self.geometry, outputs_of(self.bounds, tiles).shape, x)


@dataclass(frozen=True, slots=True)
class AveragePool:
    """F.avg_pool2d: sums, then the divisors of the outputs' positions in the whole image."""

    plans: Plans
    bounds: OutBounds
    kernel: Pair
    stride: Pair
    divisors: tuple[tuple[int, ...], tuple[int, ...]]
    """Of rows and columns of the whole output; an output is divided by their product."""

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        x = args[0] if args else kwargs["input"]
        rows, cols = (self.divisors[axis][slice(*out)] for axis, out in enumerate(outputs_of(self.bounds, tiles)))
        x = padded(tiles, x, view_of(self.plans, tiles))
        if len({*rows}) == len({*cols}) == 1:
            return F.avg_pool2d(x, self.kernel, self.stride, divisor_override=rows[0] * cols[0])
        means = F.avg_pool2d(x, self.kernel, self.stride)  # not sums, which float16 may not hold
        shares = [
            torch.tensor([pixels / value for value in values], dtype=torch.float64, device=means.device)
            for pixels, values in zip(self.kernel, (rows, cols), strict=True)
        ]
        return means * (shares[0][:, None] * shares[1]).to(means.dtype)


@dataclass(frozen=True, slots=True)
class Pad:
    """F.pad with a constant."""

    plans: Plans
    bounds: OutBounds
    value: float

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        x = args[0] if args else kwargs["input"]
        y = padded(tiles, x, view_of(self.plans, tiles), self.value)
        shared = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        return y.clone() if shared else y  # as torch: never a part of x, which a function in place would change


@dataclass(frozen=True, slots=True)
class Unfold:
    """F.unfold."""

    plans: Plans
    kernel: Pair
    dilation: Pair
    stride: Pair

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Tensor:
        """This rank's windows."""
        x = args[0] if args else kwargs["input"]
        return F.unfold(padded(tiles, x, view_of(self.plans, tiles)), self.kernel, self.dilation, 0, self.stride)


@dataclass(frozen=True, slots=True)
class Realign:
    """A function of maps that come to one cut: those cut differently are moved, of whole ones a part is taken."""

    cut: Cut
    ndim: int
    """Of the map that is cut so."""
    moved: tuple[tuple[int, Plans], ...]
    """(number among the tensors, how)."""
    parts: tuple[int, ...]
    """The whole tensors, by number."""

    def changes(self, number: int) -> bool:
        """Is the tensor of this number not taken as it is?"""
        return number in self.parts or any(number == moved for moved, _ in self.moved)

    def __call__(self, tiles: Tiles, function: Function, args: Any, kwargs: Any) -> Any:
        """The function on maps that fit."""
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for number, plans in self.moved:
            leaves[places[number]] = padded(tiles, leaves[places[number]], view_of(plans, tiles))
        for number in self.parts:
            leaves[places[number]] = own_part(leaves[places[number]], self.cut, tiles.row, tiles.col, self.ndim)
        moved_args, moved_kwargs = tree_unflatten(leaves, structure)
        return function(*moved_args, **moved_kwargs)


@dataclass(frozen=True, slots=True)
class Gather:
    """The whole map on every rank."""

    plans: Plans

    def __call__(self, tiles: Tiles, function: Function | None, args: Any, kwargs: Any) -> Tensor:
        """The same on every rank; adjoint: everybody's gradients, summed, for one's own tile."""
        return padded(tiles, args[0], view_of(self.plans, tiles))
