"""Functions of every pixel by itself, of any number of maps: activations, arithmetic, concatenation, linear layers.

Maps that are joined may be cut differently. On tiles, maps that are cut otherwise than the first are moved between
ranks, and every rank takes its own part of a whole tensor. On strips, where one of the maps went through more layers
and has fewer rows, all are cropped to the rows that they share. On patches, all maps come to the patches that tell
apart what any of them tells apart. Rejected: one cut for all maps of a network, which strides and kernels rule out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from lartpc_ds.exact.grid.cuts import Cut, Function, Plans, tensors_of, view_of
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.readings import PatchReading
from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.kernels.collectives import own_part
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.kernels.patches import moved
from lartpc_ds.exact.ops.operator import (
    CallSite,
    Operator,
    PatchCallSite,
    Result,
    StripCallSite,
    TileCallSite,
    cut_dims,
    everywhere,
    needs_map,
)
from lartpc_ds.exact.ops.windows import same_pixels

__all__ = [
    "OPERATORS",
    "Realign",
    "changes_in_place",
    "pointwise_on_patches",
    "pointwise_on_strips",
    "pointwise_on_tiles",
]

POINTWISE = """relu relu6 gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu celu selu softplus
    softsign log_sigmoid threshold rrelu exp expm1 log log1p log2 log10 sqrt rsqrt square abs neg negative sign sgn sin
    cos tan atan sinh cosh asinh erf erfc reciprocal remainder fmod heaviside trunc frac ceil pow float_power clamp
    clamp_min clamp_max clip add sub rsub subtract mul multiply div divide true_divide rdiv rpow floor round
    maximum minimum where lerp addcmul addcdiv nan_to_num isnan isfinite isinf
    eq ne lt le gt ge
    logical_and logical_or logical_xor logical_not and or xor invert bitwise_and bitwise_or bitwise_xor bitwise_not
    masked_fill to float double half bfloat16 long int short char byte bool type type_as contiguous clone detach
    requires_grad zeros_like ones_like full_like empty_like""".split()


@dataclass(frozen=True, slots=True)
class Realign:
    """A function of maps that come to one cut.

    Maps that are cut otherwise are moved, and each rank takes its part of whole ones.
    """

    cut: Cut
    ndim: int
    """The number of dimensions of a map that is cut at `cut`."""
    moved: tuple[tuple[int, Plans], ...]
    """The tensors to move: (number among the tensors, plans)."""
    parts: tuple[int, ...]
    """The whole tensors, by number."""

    def changes(self, number: int) -> bool:
        """Return whether the tensor of this number is not taken as it is."""
        return number in self.parts or any(number == moved for moved, _ in self.moved)

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function on maps that fit."""
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for number, plans in self.moved:
            leaves[places[number]] = padded(tiles, leaves[places[number]], view_of(plans, tiles))
        for number in self.parts:
            leaves[places[number]] = own_part(leaves[places[number]], self.cut, tiles.row, tiles.col, self.ndim)
        moved_args, moved_kwargs = tree_unflatten(leaves, structure)
        return function(*moved_args, **moved_kwargs)


def _realigned(site: TileCallSite, tensors: Sequence[Tensor]) -> tuple[Cut, Realign | None]:
    """Return the cut of what all tensors, broadcast, give, and how the tensors come to it.

    It is the cut of the first tensor that is cut.
    """
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
        moved.append((number, same_pixels(cut.bounds, reference.bounds)))
    realign = Realign(reference, ndim, tuple(moved), tuple(parts))
    return reference, realign if moved or parts else None


def _broadcast(cut: Cut | None, missing: int) -> Cut | None:
    return None if cut is None else Cut((cut.dims[0] + missing, cut.dims[1] + missing), cut.bounds)


def _spans(tensor: Tensor, cut: Cut, ndim: int) -> bool:
    """Return whether a whole tensor, broadcast to `ndim` dimensions, varies along a dimension that is cut."""
    missing = ndim - tensor.ndim
    return any(dim >= missing and tensor.shape[dim - missing] > 1 for dim in cut.dims)


def changes_in_place(function: Function, kwargs: Any) -> bool:
    """Tell by its name (relu_, __iadd__) or its argument whether a function changes its first argument."""
    name = getattr(function, "__name__", "")
    dunder = name.startswith("__")
    return kwargs.get("inplace", False) or (name.startswith("__i") if dunder else name.endswith("_"))


def pointwise_on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Plan a function of every pixel by itself, of any number of maps."""
    cut, run = _realigned(site, tensors_of(args, kwargs))
    if run is not None and run.changes(0) and changes_in_place(function, kwargs):
        raise site.refuse("changes a tensor in place by a map that is cut into tiles otherwise; use y = y + x")
    y = function(*args, **kwargs)
    for result in tensors_of(y, {}):
        site.mark(result, cut)
    return y, run


def _cropped(site: StripCallSite, function: Function, args: Any, kwargs: Any) -> tuple[Any, Any, Rows, int]:
    """Return the arguments with the rows that all maps share, these rows, and their dimension counted from the end."""
    marked = [(tensor, rows) for tensor in tensors_of(args, kwargs) if (rows := site.rows_of(tensor)) is not None]
    first, reference = marked[0]
    for other, rows in marked[1:]:
        if (rows.size, rows.dim - other.ndim) != (reference.size, reference.dim - first.ndim):
            raise site.refuse(f"joins maps of {reference.size} and {rows.size} rows")
    shared = reference.common([rows for _, rows in marked[1:]])
    if shared.count < 1:
        raise site.refuse("joins strips that have no row in common; take fewer memory.stream_strips")
    from_end = reference.dim - first.ndim
    in_place = (args[0] if args else kwargs.get("input")) if changes_in_place(function, kwargs) else None

    def cropped(x: Tensor) -> Tensor:
        rows = site.rows_of(x)
        if rows is None and x.ndim >= -from_end and x.shape[from_end] > 1:
            raise site.refuse(f"meets a whole tensor of shape {tuple(x.shape)}, of which a strip would need a part")
        if rows is None or (rows.start, rows.stop) == (shared.start, shared.stop):
            return x
        if x is in_place:
            raise site.refuse("changes a map in place that has other rows than what it is joined with; use y = y + x")
        return x.narrow(rows.dim, shared.start - rows.start, shared.count)

    args, kwargs = tree_map_only(Tensor, cropped, (args, kwargs))
    return args, kwargs, shared, from_end


def pointwise_on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run a function of every pixel by itself, of any number of maps."""
    args, kwargs, shared, from_end = _cropped(site, function, args, kwargs)
    y = function(*args, **kwargs)
    return tree_map_only(Tensor, lambda x: site.mark_rows(x, shared.moved(x.ndim + from_end)), y), None


def _on_shared_patches(
    site: PatchCallSite, function: Function, args: Any, kwargs: Any
) -> tuple[Any, Any, Patches, tuple[int, ...]]:
    """Return the arguments on patches that suit all maps, these patches, and their dimensions counted from the end.

    A whole tensor that has a value for each event gets one for each patch.
    """
    tensors = [tensor for tensor in tensors_of(args, kwargs) if site.patches_of(tensor) is not None]
    places = [tuple(dim - tensor.ndim for dim in cut_dims(site, tensor)) for tensor in tensors]
    shared = _patches(site, tensors[0])
    for tensor, place in zip(tensors[1:], places[1:], strict=True):
        other = _patches(site, tensor)
        if (place, other.size, other.shape) != (places[0], shared.size, shared.shape):
            raise site.refuse(f"joins maps of {list(shared.size)} and {list(other.size)} rows and columns")
        shared = shared.joined(other)
    in_place = (args[0] if args else kwargs.get("input")) if changes_in_place(function, kwargs) else None
    event = torch.from_numpy(shared.event)

    def suited(x: Tensor) -> Tensor:
        patches = site.patches_of(x)
        if patches is None:
            sizes = [x.shape[place] if x.ndim >= -place else 1 for place in places[0]]
            if max(sizes[1:]) > 1 or sizes[0] not in (1, shared.events):
                raise site.refuse(f"meets a whole tensor of shape {tuple(x.shape)}, of which a patch would need a part")
            # an index on the device of the values, which a plan has none of
            return x if sizes[0] == 1 else x.index_select(places[0][0] + x.ndim, event.to(x.device))
        if patches is shared:
            return x
        if x is in_place or places[0][0] != -x.ndim:
            raise site.refuse("joins a map with one that more of the image has reached; use y = y + x, events first")
        return moved(x, PatchReading.onto(patches, shared))

    args, kwargs = tree_map_only(Tensor, suited, (args, kwargs))
    return args, kwargs, shared, places[0]


def _patches(site: PatchCallSite, x: Tensor) -> Patches:
    patches = site.patches_of(x)
    assert patches is not None
    return patches


def pointwise_on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
    """Run a function of every pixel by itself, of any number of maps."""
    args, kwargs, patches, from_end = _on_shared_patches(site, function, args, kwargs)
    y = function(*args, **kwargs)

    def marked(x: Tensor) -> Tensor:
        return site.mark_patches(x, patches, tuple(dim + x.ndim for dim in from_end))

    return tree_map_only(Tensor, marked, y), None


def cat_on_tiles(site: TileCallSite, function: Function, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """Plan a concatenation along a dimension that is not cut."""
    cut, run = _realigned(site, tensors)
    if dim % tensors[0].ndim in cut.dims:
        raise site.refuse("joins maps along rows or columns, which are cut into tiles")
    return site.mark(function(tensors, dim), cut), run


def cat_on_strips(site: StripCallSite, function: Function, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """Concatenate along a dimension that is not cut; maps are cropped to the rows that all have."""
    if any(dim % tensor.ndim in cut_dims(site, tensor) for tensor in tensors):
        raise site.refuse("joins maps along their rows, which are cut into strips")
    return pointwise_on_strips(site, lambda parts: function(parts, dim), tuple(tensors))


def cat_on_patches(site: PatchCallSite, function: Function, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """Concatenate along a dimension that is not cut."""
    if any(dim % tensor.ndim in cut_dims(site, tensor) for tensor in tensors):
        raise site.refuse(f"joins maps along their {site.words.lines}")
    return pointwise_on_patches(site, lambda parts: function(parts, dim), tuple(tensors))


def stack_on_tiles(site: TileCallSite, function: Function, tensors: Sequence[Tensor], dim: int = 0) -> Result:
    """Plan a stack in a new dimension."""
    cut, run = _realigned(site, tensors)
    new_dim = dim % (tensors[0].ndim + 1)
    rows, cols = (cut_dim + (new_dim <= cut_dim) for cut_dim in cut.dims)
    return site.mark(function(tensors, dim), Cut((rows, cols), cut.bounds)), run


def linear(site: CallSite, function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Run a linear layer on channels in the last dimension, which acts on every pixel by itself."""
    dims = cut_dims(site, input)
    if input.ndim - 1 in dims:
        raise site.refuse(
            f"is a linear layer over {site.words.lines} of a map that is cut into {site.words.parts}; {site.words.pool}"
        )
    return site.cut_like(function(input, *args, **kwargs), input, dims), None


def prelu(site: CallSite, function: Function, input: Tensor, weight: Tensor) -> Result:
    """Run F.prelu; the weight, if it is more than one number, is for dimension 1."""
    dims = cut_dims(site, input)
    if weight.numel() > 1 and 1 in dims:
        raise site.refuse("needs its channels in dimension 1")
    return site.cut_like(function(input, weight), input, dims), None


def over_uncut(
    site: CallSite, function: Function, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
) -> Result:
    """Run a function over one dimension that is not cut and that stays."""
    dims = cut_dims(site, input)
    if dim is None or dim % input.ndim in dims:
        raise site.refuse(
            f"works along dimension {dim}, whose pixels are cut into {site.words.parts}; {site.words.way_out}"
        )
    return site.cut_like(function(input, dim, *args, **kwargs), input, dims), None


def normalize(
    site: CallSite,
    function: Function,
    input: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,
) -> Result:
    """Run F.normalize over a dimension that is not cut."""
    return over_uncut(site, lambda x, over: function(x, p, over, eps, out), input, dim)


def channels_of_pixels(site: CallSite, function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Run a function of the channels of every pixel by itself, of maps (N, C, rows, columns)."""
    dims = needs_map(site, input)
    return site.cut_like(function(input, *args, **kwargs), input, dims), None


_POINTWISE = Operator(
    on_tiles=pointwise_on_tiles,
    on_strips=pointwise_on_strips,
    on_patches=pointwise_on_patches,
    joins=True,
    may_be_unplanned=True,
)
_CAT = Operator(on_tiles=cat_on_tiles, on_strips=cat_on_strips, on_patches=cat_on_patches, joins=True)
OPERATORS = {
    **dict.fromkeys(POINTWISE, _POINTWISE),
    **dict.fromkeys(("cat", "concat", "concatenate"), _CAT),
    "stack": Operator(on_tiles=stack_on_tiles, joins=True),
    "linear": everywhere(linear),
    "prelu": everywhere(prelu),
    "normalize": everywhere(normalize),
    "cumsum": everywhere(over_uncut, may_be_unplanned=True),
    **dict.fromkeys(
        ("local_response_norm", "channel_shuffle", "native_channel_shuffle"),
        everywhere(channels_of_pixels, may_be_unplanned=True),
    ),
}
