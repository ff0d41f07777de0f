"""How each torch function treats a map that is cut into tiles: a rule a function, and a refusal for every other.

A rule gets the call as the model made it, on meta tensors of the whole image. It runs the function, says how the
result is cut, and what stands for the function on tiles (None: the function itself is right on a tile). A function
without a rule is refused by name: nothing ever runs on a tile silently.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lartpc_ds.parallel import operators, statistics
from lartpc_ds.parallel.cuts import Cut, tensors_of
from lartpc_ds.parallel.site import Result, Rule, Site, map_cut
from lartpc_ds.parallel.window_rules import WINDOW_RULES
from lartpc_ds.windows import Same, plan

__all__ = ["RULES", "per_channel", "pointwise"]


def _adaptive(site: Site, output_size: Any, x: Tensor) -> None:
    if any(size != 1 for size in (output_size if isinstance(output_size, tuple | list) else (output_size,))):
        raise site.refuse(
            f"output size {output_size} is covered on tiles only where it is 1; leave the tiles before it with "
            "layout.gather_at"
        )


def adaptive_avg_pool2d(site: Site, function: Any, input: Tensor, output_size: Any) -> Result:
    """The mean over the image."""
    cut = map_cut(site, input)
    _adaptive(site, output_size, input)
    y = function(input, output_size)
    return y, statistics.GlobalMean(cut.dims, input.shape[2] * input.shape[3], keepdim=True)


def adaptive_max_pool2d(
    site: Site, function: Any, input: Tensor, output_size: Any, return_indices: bool = False
) -> Result:
    """The maximum over the image."""
    cut = map_cut(site, input)
    _adaptive(site, output_size, input)
    if return_indices:
        raise site.refuse("return_indices would give positions within a tile; leave it out")
    return function(input, output_size), statistics.GlobalMax(cut.bounds)


def batch_norm(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Statistics of the whole image in training, running ones in evaluation."""
    map_cut(site, input)
    return site.mark(function(input, *args, **kwargs), site.cut_of(input)), statistics.BatchNorm()


def group_norm(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Statistics of the whole image."""
    map_cut(site, input)
    return site.mark(function(input, *args, **kwargs), site.cut_of(input)), statistics.GroupNorm()


def instance_norm(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Statistics of the whole image, or running ones."""
    map_cut(site, input)
    return site.mark(function(input, *args, **kwargs), site.cut_of(input)), statistics.InstanceNorm()


def mean(site: Site, function: Any, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Result:
    """Over rows and columns together, or over other dimensions."""
    return _reduce(site, function, input, dim, keepdim, kwargs, total=False)


def sum(site: Site, function: Any, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Result:
    """Over rows and columns together, or over other dimensions."""
    return _reduce(site, function, input, dim, keepdim, kwargs, total=True)


def _reduce(site: Site, function: Any, x: Tensor, dim: Any, keepdim: bool, kwargs: Any, *, total: bool) -> Result:
    cut = site.cut_of(x)
    assert cut is not None
    asked = [dim] if isinstance(dim, int) else dim or range(x.ndim)  # of no dimension, torch makes all
    dims = {one % x.ndim for one in asked}
    y = function(x, dim, keepdim, **kwargs) if dim is not None else function(x, **kwargs)
    if not dims & set(cut.dims):
        before = [0 if keepdim else len([one for one in dims if one < place]) for place in cut.dims]
        return site.mark(y, Cut((cut.dims[0] - before[0], cut.dims[1] - before[1]), cut.bounds)), None
    if dims != set(cut.dims):
        raise site.refuse(
            f"reduces dimensions {sorted(dims)}; on tiles it must be rows and columns together, {list(cut.dims)}"
        )
    pixels = math.prod(x.shape[one] for one in cut.dims)
    return y, statistics.GlobalMean(tuple(cut.dims), pixels, keepdim, total)


def layer_norm(
    site: Site, function: Any, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Result:
    """Over trailing dimensions that are not cut: every pixel for itself."""
    cut = site.cut_of(input)
    assert cut is not None
    if max(cut.dims) >= input.ndim - len(normalized_shape):
        raise site.refuse(
            "runs over rows or columns; on tiles a layer norm must act per pixel, over channels in the last dimension"
        )
    return site.mark(function(input, normalized_shape, *args, **kwargs), cut), None


def linear(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """On channels in the last dimension: every pixel for itself."""
    cut = site.cut_of(input)
    if cut is None or input.ndim - 1 in cut.dims:
        raise site.refuse(
            "is a linear layer over rows or columns of a map that is cut into tiles; pool it to one pixel first"
        )
    return site.mark(function(input, *args, **kwargs), cut), None


def per_channel(site: Site, function: Any, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Result:
    """Softmax and the like, over a dimension that is not cut."""
    cut = site.cut_of(input)
    assert cut is not None
    if dim is None or dim % input.ndim in cut.dims:
        raise site.refuse(f"runs over dimension {dim}, which is cut into tiles")
    return site.mark(function(input, dim, *args, **kwargs), cut), None


def normalize(
    site: Site, function: Any, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Result:
    """F.normalize, over a dimension that is not cut."""
    return per_channel(site, lambda x, over: function(x, p, over, eps, out), input, dim)


def prelu(site: Site, function: Any, input: Tensor, weight: Tensor) -> Result:
    """Every pixel for itself; the weight, if not one number, is for dimension 1."""
    cut = site.cut_of(input)
    if cut is None or (weight.numel() > 1 and 1 in cut.dims):
        raise site.refuse("needs its channels in dimension 1")
    return site.mark(function(input, weight), cut), None


def over_channels(
    site: Site, function: Any, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Result:
    """Extremes over dimensions that are not cut; torch.max(x, y) is pointwise."""
    if isinstance(dim, Tensor):
        return pointwise(site, function, input, dim)
    cut = site.cut_of(input)
    dims = {one % input.ndim for one in ((dim,) if isinstance(dim, int) else dim or range(input.ndim))}
    if cut is None or dims & set(cut.dims):
        raise site.refuse(
            "over rows and columns is covered on tiles only as AdaptiveMaxPool2d(1); over channels, name the dimension"
        )
    y = function(input, dim, keepdim, **kwargs)
    rows, cols = (place - (0 if keepdim else len([one for one in dims if one < place])) for place in cut.dims)
    for result in y if isinstance(y, tuple) else (y,):
        site.mark(result, Cut((rows, cols), cut.bounds))
    return y, None


def _realigned(site: Site, tensors: Sequence[Tensor]) -> tuple[Cut, operators.Realign | None]:
    """The cut of the first cut tensor, and how others come to it."""
    cuts = [site.cut_of(tensor) for tensor in tensors]
    reference = next(cut for cut in cuts if cut is not None)
    moved = []
    for number, cut in enumerate(cuts):
        if cut is None or cut == reference:
            continue
        sizes = [bounds[-1] for bounds in cut.bounds], [bounds[-1] for bounds in reference.bounds]
        if cut.dims != reference.dims or sizes[0] != sizes[1]:
            raise site.refuse(f"joins maps of {sizes[1]} and {sizes[0]} rows and columns, cut into tiles differently")
        if cut.dims != (2, 3) or tensors[number].ndim != 4:
            raise site.refuse("joins maps that are cut differently; rows and columns must be the last two of four")
        axes = [plan(Same(target), source, target) for source, target in zip(cut.bounds, reference.bounds, strict=True)]
        moved.append((number, (axes[0], axes[1])))
    return reference, operators.Realign(tuple(moved)) if moved else None


def pointwise(site: Site, function: Any, *args: Any, **kwargs: Any) -> Result:
    """Every pixel for itself, any number of maps; whole tensors must be the same for all pixels."""
    tensors = tensors_of(args, kwargs)
    cut, run = _realigned(site, tensors)
    shape = next(tensor.shape for tensor in tensors if site.cut_of(tensor) is not None)
    for tensor in tensors:
        if site.cut_of(tensor) is None and _spans(tensor, cut, len(shape)):
            raise site.refuse(
                f"meets a whole tensor of shape {tuple(tensor.shape)}, of which every tile would need its own part"
            )
    y = function(*args, **kwargs)
    for result in tensors_of(y, {}):
        site.mark(result, cut if result.ndim == len(shape) else None)
    return y, run


def _spans(tensor: Tensor, cut: Cut, ndim: int) -> bool:
    """Does a whole tensor, broadcast to `ndim` dimensions, vary along a cut one?"""
    missing = ndim - tensor.ndim
    return missing < 0 or any(dim >= missing and tensor.shape[dim - missing] > 1 for dim in cut.dims)


def cat(site: Site, function: Any, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """Along a dimension that is not cut."""
    cut, run = _realigned(site, tensors)
    if any(site.cut_of(tensor) is None for tensor in tensors) or dim % tensors[0].ndim in cut.dims:
        raise site.refuse("joins a map that is cut into tiles with a whole one, or along rows or columns")
    return site.mark(function(tensors, dim), cut), run


RULES: dict[str, Rule] = {
    **WINDOW_RULES,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "adaptive_max_pool2d": adaptive_max_pool2d,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "mean": mean,
    "sum": sum,
    "layer_norm": layer_norm,
    "normalize": normalize,
    "prelu": prelu,
    **dict.fromkeys(("amax", "amin", "max", "min"), over_channels),
    "linear": linear,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
}
