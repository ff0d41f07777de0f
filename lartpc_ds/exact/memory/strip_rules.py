"""How each torch function treats strips of maps: a rule a function, and a refusal for every other.

What acts on every pixel for itself is right on a strip. Maps that are joined may have different rows, because one of
them went through more layers: they are cropped to the rows that all have. What looks at a whole map is refused.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from lartpc_ds.exact.grid.cuts import RESHAPES, tensors_of
from lartpc_ds.exact.memory.strip_site import StripRule, StripSite, map_rows, rows_in
from lartpc_ds.exact.memory.strip_windows import STRIP_WINDOW_RULES
from lartpc_ds.exact.ops.rules import changes_in_place
from lartpc_ds.exact.ops.shapes import kept
from lartpc_ds.exact.trace.trace import DROPOUTS, PER_CHANNEL, POINTWISE

__all__ = ["JOINS", "STRIP_RULES"]


def pointwise(site: StripSite, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Every pixel for itself, any number of maps: they are cropped to the rows that all of them have."""
    marked = [(one, rows) for one in tensors_of(args, kwargs) if (rows := site.rows_of(one)) is not None]
    first, reference = marked[0]
    for other, rows in marked[1:]:
        if (rows.size, rows.dim - other.ndim) != (reference.size, reference.dim - first.ndim):
            raise site.refuse(f"joins maps of {reference.size} and {rows.size} rows")
    shared = reference.common([rows for _, rows in marked[1:]])
    if shared.count < 1:
        raise site.refuse("joins strips that have no row in common; take fewer memory.stream_strips")
    from_end = reference.dim - first.ndim

    def cropped(x: Tensor) -> Tensor:
        rows = site.rows_of(x)
        if rows is None and x.ndim >= -from_end and x.shape[from_end] > 1:
            raise site.refuse(f"meets a whole tensor of shape {tuple(x.shape)}, of which a strip would need a part")
        if rows is None or (rows.start, rows.stop) == (shared.start, shared.stop):
            return x
        if x is in_place:
            raise site.refuse("changes a map in place that has other rows than what it is joined with; use y = y + x")
        return x.narrow(rows.dim, shared.start - rows.start, shared.count)

    in_place = (args[0] if args else kwargs.get("input")) if changes_in_place(function, kwargs) else None
    args, kwargs = tree_map_only(Tensor, cropped, (args, kwargs))
    y = function(*args, **kwargs)
    return tree_map_only(Tensor, lambda one: site.mark(one, shared.moved(one.ndim + from_end)), y)


def dropout(
    site: StripSite, function: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Evaluation only: strips would draw masks of their own, and other ones when they run again."""
    if training and p > 0:
        raise site.refuse(
            f"with p = {p} draws random masks, which strips cannot share; set p = 0 in the streamed front, or end the "
            "front earlier with memory.stream_until"
        )
    return site.mark(function(input, p, training, inplace), rows_in(site, input))


_SWEEP = (
    "takes statistics over the whole map; each would need a sweep over all strips of its own. Norms of the streamed "
    "front must act per pixel or be frozen: --set model.norm=layer, an earlier memory.stream_until, or "
    "memory.stream_strips = 1"
)


def batch_norm(
    site: StripSite,
    function: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """With running statistics, frozen."""
    if training or running_mean is None:
        raise site.refuse(_SWEEP)
    y = function(input, running_mean, running_var, weight, bias, training, *args, **kwargs)
    return site.mark(y, map_rows(site, input))


def statistics(site: StripSite, function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Group and instance norm, global pools."""
    raise site.refuse(_SWEEP)


def layer_norm(
    site: StripSite, function: Any, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any
) -> Tensor:
    """Over trailing dimensions without the rows."""
    rows = rows_in(site, input)
    if rows.dim >= input.ndim - len(normalized_shape):
        raise site.refuse(f"runs over rows: it {_SWEEP}")
    return site.mark(function(input, normalized_shape, *args, **kwargs), rows)


def linear(site: StripSite, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """On channels in the last dimension: every pixel for itself."""
    rows = rows_in(site, input)
    if rows.dim == input.ndim - 1:
        raise site.refuse("is a linear layer over rows; pool them first, after the streamed front")
    return site.mark(function(input, *args, **kwargs), rows)


def prelu(site: StripSite, function: Any, input: Tensor, weight: Tensor) -> Tensor:
    """The weight, if not one number, is for dimension 1."""
    rows = rows_in(site, input)
    if weight.numel() > 1 and rows.dim == 1:
        raise site.refuse("needs its channels in dimension 1")
    return site.mark(function(input, weight), rows)


def per_channel(
    site: StripSite, function: Any, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Softmax and the like, over a dimension without the rows."""
    rows = rows_in(site, input)
    if dim is None or dim % input.ndim == rows.dim:
        raise site.refuse(f"runs over dimension {dim}, whose rows are cut into strips")
    return site.mark(function(input, dim, *args, **kwargs), rows)


def reduce(
    site: StripSite, function: Any, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Tensor:
    """Means, sums and extremes over dimensions without the rows."""
    rows = rows_in(site, input)
    dims = {one % input.ndim for one in ((dim,) if isinstance(dim, int) else dim or range(input.ndim))}
    if rows.dim in dims:
        raise site.refuse(f"runs over rows: it {_SWEEP}")
    y = function(input, dim, keepdim, **kwargs)
    return site.mark(y, rows.moved(rows.dim - (0 if keepdim else len([one for one in dims if one < rows.dim]))))


def cat(site: StripSite, function: Any, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    """Along another dimension than the rows; maps are cropped to the rows that all have."""
    if any(dim % one.ndim == rows_in(site, one).dim for one in tensors):
        raise site.refuse("joins maps along their rows, which are cut into strips")
    return pointwise(site, lambda parts: function(parts, dim), tuple(tensors))


def permute(site: StripSite, function: Any, input: Tensor, *dims: Any) -> Tensor:
    """The rows move along."""
    order = [dim % input.ndim for dim in (dims[0] if isinstance(dims[0], tuple | list) else dims)]
    rows = rows_in(site, input)
    return site.mark(function(input, *dims), rows.moved(order.index(rows.dim)))


def transpose(site: StripSite, function: Any, input: Tensor, dim0: int, dim1: int) -> Tensor:
    """The rows move along."""
    rows, one, other = rows_in(site, input), dim0 % input.ndim, dim1 % input.ndim
    return site.mark(function(input, dim0, dim1), rows.moved({one: other, other: one}.get(rows.dim, rows.dim)))


def reshape(site: StripSite, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Rows must stay a dimension of their own."""
    rows, before = rows_in(site, input), tuple(input.shape)  # `unsqueeze_` changes it
    y: Tensor = function(input, *args, **kwargs)
    dim = kept(before, rows.dim, y.shape)
    if dim is None:
        raise site.refuse(f"reshapes {before} to {tuple(y.shape)}: mixes rows, which are cut into strips, with others")
    return site.mark(y, rows.moved(dim))


_CATS = frozenset("cat concat concatenate".split())
JOINS = POINTWISE | _CATS
"""Functions that may take several maps."""

STRIP_RULES: dict[str, StripRule] = {
    **STRIP_WINDOW_RULES,
    **dict.fromkeys(POINTWISE, pointwise),
    **dict.fromkeys(PER_CHANNEL, per_channel),
    **dict.fromkeys(DROPOUTS, dropout),
    **dict.fromkeys(RESHAPES - {"expand", "repeat"} | {"unsqueeze", "squeeze"}, reshape),
    **dict.fromkeys("mean sum amax amin".split(), reduce),
    **dict.fromkeys(_CATS, cat),
    **dict.fromkeys("group_norm instance_norm adaptive_avg_pool2d adaptive_max_pool2d".split(), statistics),
    **dict.fromkeys(("transpose", "swapaxes"), transpose),
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "linear": linear,
    "permute": permute,
    "prelu": prelu,
}
