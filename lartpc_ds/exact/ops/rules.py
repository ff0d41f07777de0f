"""How each torch function treats a map that is cut into tiles: a rule a function, and a refusal for every other.

A rule gets the call as the model made it, on meta tensors of the whole image. It runs the function, says how the
result is cut, and what stands for the function on tiles (None: the function itself is right on a tile). A function
without a rule is refused by name: nothing ever runs on a tile silently.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, tensors_of
from lartpc_ds.exact.grid.site import Result, Rule, Site, map_cut
from lartpc_ds.exact.grid.windows import Same, plan
from lartpc_ds.exact.ops import operators, statistics
from lartpc_ds.exact.ops.product_rules import PRODUCT_RULES
from lartpc_ds.exact.ops.reduction_rules import REDUCTION_RULES
from lartpc_ds.exact.ops.selection_rules import SELECTION_RULES
from lartpc_ds.exact.ops.window_rules import WINDOW_RULES

__all__ = ["RULES", "changes_in_place", "per_channel", "pointwise"]


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


def extreme(site: Site, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """torch.max(x, y) is pointwise; all else is a reduction."""
    if any(isinstance(one, Tensor) for one in (*args, *kwargs.values())):
        return pointwise(site, function, input, *args, **kwargs)
    return REDUCTION_RULES[function.__name__](site, function, input, *args, **kwargs)


def over_channels(
    site: Site, function: Any, input: Tensor, dim: int | None = None, keepdim: bool = False, **kwargs: Any
) -> Result:
    """Positions along a dimension that is not cut."""
    cut = site.cut_of(input)
    if cut is None or dim is None or dim % input.ndim in cut.dims:
        raise site.refuse("gives positions in rows or columns, which are cut into tiles; name another dimension")
    y, place = function(input, dim, keepdim, **kwargs), dim % input.ndim
    rows, cols = (one - (not keepdim and place < one) for one in cut.dims)
    return site.mark(y, Cut((rows, cols), cut.bounds)), None


def _realigned(site: Site, tensors: Sequence[Tensor]) -> tuple[Cut, operators.Realign | None]:
    """The cut of what all tensors, broadcast, give: that of the first cut one; and how the others come to it."""
    ndim = max(tensor.ndim for tensor in tensors)
    cuts = [_broadcast(site.cut_of(tensor), ndim - tensor.ndim) for tensor in tensors]
    reference = next(cut for cut in cuts if cut is not None)
    moved = []
    parts = [number for number, cut in enumerate(cuts) if cut is None and _spans(tensors[number], reference, ndim)]
    for number, cut in enumerate(cuts):
        if cut is None or cut == reference:
            continue
        if cut.dims != reference.dims or cut.size != reference.size:
            sizes = f"{list(reference.size)} and {list(cut.size)}"
            raise site.refuse(f"joins maps of {sizes} rows and columns, cut into tiles differently")
        if cut.dims != (2, 3) or tensors[number].ndim != 4:
            raise site.refuse("joins maps that are cut differently; rows and columns must be the last two of four")
        axes = [plan(Same(target), source, target) for source, target in zip(cut.bounds, reference.bounds, strict=True)]
        moved.append((number, (axes[0], axes[1])))
    how = operators.Realign(reference, ndim, tuple(moved), tuple(parts))
    return reference, how if moved or parts else None


def _broadcast(cut: Cut | None, missing: int) -> Cut | None:
    return None if cut is None else Cut((cut.dims[0] + missing, cut.dims[1] + missing), cut.bounds)


def pointwise(site: Site, function: Any, *args: Any, **kwargs: Any) -> Result:
    """Every pixel for itself, any number of maps; of a whole tensor every tile takes its own part."""
    cut, run = _realigned(site, tensors_of(args, kwargs))
    if run is not None and run.changes(0) and changes_in_place(function, kwargs):
        raise site.refuse("changes a tensor in place by a map that is cut into tiles otherwise; use y = y + x")
    y = function(*args, **kwargs)
    for result in tensors_of(y, {}):
        site.mark(result, cut)
    return y, run


def changes_in_place(function: Any, kwargs: Any) -> bool:
    """By its name: relu_, __iadd__; or by its argument."""
    name = getattr(function, "__name__", "")
    dunder = name.startswith("__")
    return kwargs.get("inplace", False) or (name.startswith("__i") if dunder else name.endswith("_"))


def _spans(tensor: Tensor, cut: Cut, ndim: int) -> bool:
    """Does a whole tensor, broadcast to `ndim` dimensions, vary along a cut one?"""
    missing = ndim - tensor.ndim
    return any(dim >= missing and tensor.shape[dim - missing] > 1 for dim in cut.dims)


def cat(site: Site, function: Any, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """Along a dimension that is not cut."""
    cut, run = _realigned(site, tensors)
    if dim % tensors[0].ndim in cut.dims:
        raise site.refuse("joins maps along rows or columns, which are cut into tiles")
    return site.mark(function(tensors, dim), cut), run


def stack(site: Site, function: Any, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """In a new dimension."""
    cut, run = _realigned(site, tensors)
    new = dim % (tensors[0].ndim + 1)
    rows, cols = (one + (new <= one) for one in cut.dims)
    return site.mark(function(tensors, dim), Cut((rows, cols), cut.bounds)), run


RULES: dict[str, Rule] = {
    **WINDOW_RULES,
    **REDUCTION_RULES,
    **SELECTION_RULES,
    **PRODUCT_RULES,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "normalize": normalize,
    "prelu": prelu,
    **dict.fromkeys(("max", "min"), extreme),
    **dict.fromkeys(("argmax", "argmin"), over_channels),
    "linear": linear,
    "stack": stack,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
}
