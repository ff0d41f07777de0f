"""Reductions of a map: over rows, columns or both, alone or together with other dimensions; softmax and its like.

On tiles each rank reduces its tile with torch's own function, then the ranks' values are reduced: sums by a sum, norms
by a norm of norms. What ties share or the first pixel takes is decided over all ranks, as on one device. A call is read
when it is made, so one plan does for every dimension, type and option of a function. On strips a reduction over rows is
refused, because it would need a sweep over all strips of its own. On patches, sums and means over rows and columns
count every pixel as often as it occurs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, Function, tensors_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.kernels.collectives import Over
from lartpc_ds.exact.kernels.patches import sums_of_events
from lartpc_ds.exact.ops.norms import SWEEP
from lartpc_ds.exact.ops.operator import (
    CallSite,
    Operator,
    PatchCallSite,
    Result,
    StripCallSite,
    TileCallSite,
    cut_dims,
    everywhere,
)
from lartpc_ds.exact.ops.pointwise import pointwise_on_patches, pointwise_on_strips, pointwise_on_tiles

__all__ = ["OPERATORS", "REDUCTIONS", "over_map"]

Value = Tensor | tuple[Tensor, ...]


class _Arguments(NamedTuple):
    """The arguments of a reduction."""

    x: Tensor
    dims: tuple[int, ...]
    """These are in ascending order and not negative."""
    named: bool
    """Whether the call named the dimensions."""
    keepdim: bool
    options: dict[str, Any]


_POSITIONAL = {
    **dict.fromkeys(("count_nonzero", "softmax", "log_softmax", "softmin"), ("dim",)),
    "norm": ("p", "dim", "keepdim"),
    "linalg_vector_norm": ("ord", "dim", "keepdim"),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), ("dim", "unbiased", "keepdim")),
}
_ALIASES = {"axis": "dim", "keepdims": "keepdim", "ord": "p"}


def _arguments_of(name: str, args: Any, kwargs: Any) -> _Arguments:
    """Read the arguments of a call of the reduction `name`."""
    (x, *values), given = (args, kwargs) if args else ((kwargs["input"],), kwargs)
    names = _POSITIONAL.get(name, ("dim", "keepdim"))
    if values and isinstance(values[0], bool) and names[1:2] == ("unbiased",):
        names = names[1:]
    options = dict(zip(names, values, strict=False)) | {key: value for key, value in given.items() if key != "input"}
    options = {_ALIASES.get(key, key): value for key, value in options.items() if key != "_stacklevel"}
    for value in values[len(names) :]:
        if isinstance(value, torch.dtype):
            options["dtype"] = value
    dim, keepdim = options.pop("dim", None), bool(options.pop("keepdim", False))
    dims = (dim,) if isinstance(dim, int) else tuple(dim) if dim is not None else ()
    reduced = tuple(sorted({named % x.ndim for named in dims})) or tuple(range(x.ndim))
    return _Arguments(
        x, reduced, bool(dims), keepdim, {key: value for key, value in options.items() if value is not None}
    )


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the type to reduce in, so that no rank's part is rounded to less than float32."""
    return torch.promote_types(dtype, torch.float32)


def _exact_or_int(dtype: torch.dtype) -> torch.dtype:
    """Return the type to add or multiply in: integers and truth values stay integers."""
    return _exact(dtype) if dtype.is_floating_point or dtype.is_complex else torch.int64


def _sum(x: Tensor, over: Over, dtype: torch.dtype, **options: Any) -> Tensor:
    return over.total(x.sum(over.dims, keepdim=True, dtype=_exact_or_int(dtype))).to(dtype)


def _mean(x: Tensor, over: Over, dtype: torch.dtype, **options: Any) -> Tensor:
    return (_sum(x, over, _exact(dtype)) / over.elements(x)).to(dtype)


def _nansum(x: Tensor, over: Over, dtype: torch.dtype, **options: Any) -> Tensor:
    return over.total(x.nansum(over.dims, keepdim=True, dtype=_exact_or_int(dtype))).to(dtype)


def _nanmean(x: Tensor, over: Over, dtype: torch.dtype, **options: Any) -> Tensor:
    numbers = over.total((~x.isnan()).sum(over.dims, keepdim=True))
    return (_nansum(x, over, _exact(dtype)) / numbers).to(dtype)


def _prod(x: Tensor, over: Over, dtype: torch.dtype, **options: Any) -> Tensor:
    local = x.to(_exact_or_int(dtype))
    for dim in over.dims:
        local = local.prod(dim, keepdim=True)
    return over.gathered(local, 1).prod(0).to(dtype)


def _count_nonzero(x: Tensor, over: Over, **options: Any) -> Tensor:
    return over.total((x != 0).sum(over.dims, keepdim=True))


def _any(x: Tensor, over: Over, **options: Any) -> Tensor:
    return _as_truth(_count_nonzero(x, over) > 0, x)


def _all(x: Tensor, over: Over, **options: Any) -> Tensor:
    return _as_truth(_count_nonzero(x == 0, over) == 0, x)


def _as_truth(y: Tensor, x: Tensor) -> Tensor:
    return y.to(torch.uint8) if x.dtype == torch.uint8 else y  # as torch does


def _comparable(x: Tensor) -> Tensor:
    """Return x in a type that process groups can compare; every value stays as it is."""
    return x.to(torch.uint8) if x.dtype == torch.bool else x.to(_exact(x.dtype)) if x.is_floating_point() else x


def _extreme(x: Tensor, over: Over, *, largest: bool, **options: Any) -> Tensor:
    value = _comparable(x.amax(over.dims, keepdim=True) if largest else x.amin(over.dims, keepdim=True))
    count = (_comparable(x.detach()) == value.detach()).sum(over.dims, keepdim=True)
    return over.tied(value, count, largest=largest).to(x.dtype)


def _first(x: Tensor, over: Over, *, largest: bool) -> tuple[Tensor, Tensor]:
    (dim,) = over.dims
    value, index = x.max(dim, keepdim=True) if largest else x.min(dim, keepdim=True)
    value, position = over.first(_comparable(value), over.position(index, dim), largest=largest)
    return value.to(x.dtype), position


def _max(x: Tensor, over: Over, named: bool, **options: Any) -> Value:
    return torch.return_types.max(_first(x, over, largest=True)) if named else _extreme(x, over, largest=True)


def _min(x: Tensor, over: Over, named: bool, **options: Any) -> Value:
    return torch.return_types.min(_first(x, over, largest=False)) if named else _extreme(x, over, largest=False)


def _logsumexp(x: Tensor, over: Over, **options: Any) -> Tensor:
    local = x.to(_exact(x.dtype)).logsumexp(over.dims, keepdim=True)
    y = over.gathered(local, -math.inf).logsumexp(0)
    return y.to(x.dtype) if x.is_floating_point() else y


def _norm(x: Tensor, over: Over, p: Any = 2, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    p, dtype = 2.0 if p == "fro" else float(p), dtype or x.dtype
    x = x.to(_exact(dtype))
    if math.isinf(p):
        return _extreme(x.abs(), over, largest=p > 0).to(dtype)
    local = torch.linalg.vector_norm(x, p, over.dims, keepdim=True)
    y: Tensor = torch.linalg.vector_norm(over.gathered(local, 0), p, 0).to(dtype)
    return y


def _deviations(x: Tensor, over: Over) -> tuple[Tensor, Tensor]:
    """Return the differences from the mean and the mean, both no less exact than float32."""
    mean = _mean(x, over, _exact(x.dtype))
    return x - over.own(mean), mean


def _degrees(x: Tensor, over: Over, options: dict[str, Any]) -> float:
    correction = options.get("correction", 1 if options.get("unbiased", True) else 0)
    return float(max(over.elements(x) - correction, 0))


def _var_mean(x: Tensor, over: Over, **options: Any) -> tuple[Tensor, ...]:
    deviations, mean = _deviations(x, over)
    total = over.total(deviations.square().sum(over.dims, keepdim=True))
    return (total / _degrees(x, over, options)).to(x.dtype), mean.to(x.dtype)


def _std_mean(x: Tensor, over: Over, **options: Any) -> tuple[Tensor, ...]:
    deviations, mean = _deviations(x, over)
    # the gradient of a vector norm at zero is zero, as that of torch's own function
    local = torch.linalg.vector_norm(deviations, 2, over.dims, keepdim=True)
    norm = torch.linalg.vector_norm(over.gathered(local, 0), 2, 0)
    return (norm / math.sqrt(_degrees(x, over, options))).to(x.dtype), mean.to(x.dtype)


def _var(x: Tensor, over: Over, **options: Any) -> Tensor:
    return _var_mean(x, over, **options)[0]


def _std(x: Tensor, over: Over, **options: Any) -> Tensor:
    return _std_mean(x, over, **options)[0]


REDUCTIONS: dict[str, Callable[..., Value]] = {
    "sum": _sum,
    "mean": _mean,
    "nansum": _nansum,
    "nanmean": _nanmean,
    "prod": _prod,
    "count_nonzero": _count_nonzero,
    "any": _any,
    "all": _all,
    "amax": partial(_extreme, largest=True),
    "amin": partial(_extreme, largest=False),
    "max": _max,
    "min": _min,
    "logsumexp": _logsumexp,
    "norm": _norm,
    "linalg_vector_norm": _norm,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
}
_TYPED = frozenset("sum mean nansum nanmean prod norm linalg_vector_norm".split())


def _result_dtype(function: Function, x: Tensor) -> torch.dtype:
    """Return the type in which torch itself, perhaps under autocast, reduces such a map."""
    with torch.no_grad():
        y = function(x.detach()[(slice(0, 1),) * x.ndim], 0)
    assert isinstance(y, Tensor)
    return y.dtype


@dataclass(frozen=True, slots=True)
class Reduce:
    """The reduction `name` of a map that is cut at `cut`."""

    name: str
    cut: Cut

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Any:
        """Return the result, which is the same on every rank."""
        x, dims, named, keepdim, options = _arguments_of(self.name, args, kwargs)
        if self.name in _TYPED:
            options["dtype"] = options.get("dtype") or _result_dtype(function, x)
        y = REDUCTIONS[self.name](x, Over(tiles, self.cut, dims), named=named, **options)
        if keepdim:
            return y
        if isinstance(y, Tensor):
            return y.squeeze(dims)
        return type(y)([part.squeeze(dims) for part in y])


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax and its like over rows or columns, or over both as one dimension."""

    name: str
    cut: Cut

    def __call__(self, tiles: Tiles, function: Function, /, *args: Any, **kwargs: Any) -> Tensor:
        """Return this rank's outputs."""
        x, dims, _, _, options = _arguments_of(self.name, args, kwargs)
        dtype, over = options.get("dtype") or _result_dtype(function, x), Over(tiles, self.cut, dims)
        x = x.to(_exact(dtype)) if self.name != "softmin" else -x.to(_exact(dtype))
        logarithm = x - over.own(_logsumexp(x, over))
        return (logarithm if self.name == "log_softmax" else logarithm.exp()).to(dtype)


def _dims_left(dims: tuple[int, ...], gone: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """Return where dimensions are after a reduction over others."""
    return dims if keepdim else tuple(dim - sum(other < dim for other in gone) for dim in dims)


def _reduction(name: str) -> Operator:
    def elsewhere(site: CallSite, function: Function, args: Any, kwargs: Any) -> Any | None:
        """Return the result if no dimension that is cut is reduced."""
        x, gone, _, keepdim, _ = _arguments_of(name, args, kwargs)
        dims = cut_dims(site, x)
        if set(gone) & set(dims):
            return None
        y = function(*args, **kwargs)
        for result in tensors_of((y,), {}):
            site.cut_like(result, x, _dims_left(dims, gone, keepdim))
        return y

    def on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        if (y := elsewhere(site, function, args, kwargs)) is not None:
            return y, None
        x, _, _, _, options = _arguments_of(name, args, kwargs)
        cut, p = site.cut_of(x), options.get("p", 2)
        assert cut is not None
        if p != "fro" and (isinstance(p, str) or (p <= 0 and not math.isinf(p))):
            raise site.refuse(f"of order {p!r} is not covered over rows and columns; on tiles it must be positive")
        return function(*args, **kwargs), Reduce(name, cut)

    def on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        if (y := elsewhere(site, function, args, kwargs)) is not None:
            return y, None
        raise site.refuse(f"runs over rows: it {SWEEP}")

    def on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        if (y := elsewhere(site, function, args, kwargs)) is not None:
            return y, None
        x, gone, _, keepdim, options = _arguments_of(name, args, kwargs)
        if name not in ("mean", "sum") or gone != (2, 3) or cut_dims(site, x) != (0, 2, 3):
            raise site.refuse(
                f"over {site.words.lines} is covered for sums and means over all rows and columns of a map only; "
                f"{site.words.way_out}"
            )
        return over_map(site, x, options.get("dtype") or _result_dtype(function, x), keepdim, name == "mean"), None

    return Operator(on_tiles=on_tiles, on_strips=on_strips, on_patches=on_patches)


def over_map(site: PatchCallSite, x: Tensor, dtype: torch.dtype, keepdim: bool, mean: bool) -> Tensor:
    """Return the sum or mean of each channel over each event's whole map, (events, C) or (events, C, 1, 1)."""
    patches = site.patches_of(x)
    assert patches is not None
    y = sums_of_events(x, patches)
    y = (y / math.prod(patches.size) if mean else y).to(dtype)
    return y[:, :, None, None] if keepdim else y


def _softmax(name: str) -> Operator:
    def rule(site: CallSite, function: Function, *args: Any, **kwargs: Any) -> tuple[Tensor, bool]:
        """Return the result, and whether a dimension that is cut is summed over."""
        x, over, named, _, _ = _arguments_of(name, args, kwargs)
        dims = cut_dims(site, x)
        if not named:
            raise site.refuse(f"names no dimension, which torch would choose by the shape of a {site.words.part}")
        return site.cut_like(function(*args, **kwargs), x, dims), bool(set(over) & set(dims))

    def on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        y, over_cut = rule(site, function, *args, **kwargs)
        cut = site.cut_of(y)
        assert cut is not None
        return y, Softmax(name, cut) if over_cut else None

    def on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        y, over_cut = rule(site, function, *args, **kwargs)
        if over_cut:
            raise site.refuse(f"runs over rows: it {SWEEP}")
        return y, None

    def on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        y, over_cut = rule(site, function, *args, **kwargs)
        if over_cut:
            raise site.refuse(f"runs over {site.words.lines}; {site.words.way_out}")
        return y, None

    return Operator(on_tiles=on_tiles, on_strips=on_strips, on_patches=on_patches)


def _extremes(name: str) -> Operator:
    """Return the operator of max or min: torch.max(x, y) acts on every pixel, and any other call is a reduction."""
    reduction = _reduction(name)

    def several(args: Any, kwargs: Any) -> bool:
        return len(tensors_of(args, kwargs)) > 1

    def on_tiles(site: TileCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        rule = pointwise_on_tiles if several(args, kwargs) else reduction.on_tiles
        assert rule is not None
        return rule(site, function, *args, **kwargs)

    def on_strips(site: StripCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        rule = pointwise_on_strips if several(args, kwargs) else reduction.on_strips
        assert rule is not None
        return rule(site, function, *args, **kwargs)

    def on_patches(site: PatchCallSite, function: Function, *args: Any, **kwargs: Any) -> Result:
        rule = pointwise_on_patches if several(args, kwargs) else reduction.on_patches
        assert rule is not None
        return rule(site, function, *args, **kwargs)

    return Operator(on_tiles=on_tiles, on_strips=on_strips, on_patches=on_patches, joins=True)


def _positions(
    site: CallSite, function: Function, input: Tensor, dim: int | None = None, keepdim: bool = False, **kwargs: Any
) -> Result:
    """Run argmax or argmin along a dimension that is not cut."""
    dims = cut_dims(site, input)
    if dim is None or dim % input.ndim in dims:
        raise site.refuse(
            f"gives positions in {site.words.lines}, which are cut into {site.words.parts}; name another dimension"
        )
    y = function(input, dim, keepdim, **kwargs)
    return site.cut_like(y, input, _dims_left(dims, (dim % input.ndim,), keepdim)), None


OPERATORS = {
    **{name: _reduction(name) for name in REDUCTIONS if name not in ("max", "min")},
    **{name: _softmax(name) for name in ("softmax", "log_softmax", "softmin")},
    **{name: _extremes(name) for name in ("max", "min")},
    **dict.fromkeys(("argmax", "argmin"), everywhere(_positions)),
}
