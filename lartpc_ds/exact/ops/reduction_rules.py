"""Rules of the functions that reduce a map: over rows, columns or both, alone or together with other dimensions."""

import math
from typing import Any

from lartpc_ds.exact.grid.cuts import Cut
from lartpc_ds.exact.grid.site import Result, Rule, Site
from lartpc_ds.exact.ops.cells import adaptive_avg_pool2d, adaptive_max_pool2d
from lartpc_ds.exact.ops.reduced import REDUCTIONS, SOFTMAXES, Reduce, Softmax, asked

__all__ = ["REDUCTION_RULES"]


def _reduction(name: str) -> Rule:
    def rule(site: Site, function: Any, *args: Any, **kwargs: Any) -> Result:
        x, dims, _, keepdim, options = asked(name, args, kwargs)
        cut, y = site.cut_of(x), function(*args, **kwargs)
        if cut is None:
            raise site.refuse("uses a map that is cut into tiles to reduce a whole tensor")
        if not set(dims) & set(cut.dims):
            rows, cols = (dim - (0 if keepdim else len([one for one in dims if one < dim])) for dim in cut.dims)
            for result in y if isinstance(y, tuple) else (y,):
                site.mark(result, Cut((rows, cols), cut.bounds))
            return y, None
        p = options.get("p", 2)
        if p != "fro" and (isinstance(p, str) or (p <= 0 and not math.isinf(p))):
            raise site.refuse(f"of order {p!r} is not covered over rows and columns; on tiles it must be positive")
        return y, Reduce(name, cut)

    return rule


def _softmax(name: str) -> Rule:
    def rule(site: Site, function: Any, *args: Any, **kwargs: Any) -> Result:
        x, dims, named, _, _ = asked(name, args, kwargs)
        cut = site.cut_of(x)
        if cut is None or not named:
            raise site.refuse("names no dimension, which torch would choose by the shape of a tile; name it")
        y = site.mark(function(*args, **kwargs), cut)
        return y, Softmax(name, cut) if set(dims) & set(cut.dims) else None

    return rule


REDUCTION_RULES: dict[str, Rule] = {
    **{name: _reduction(name) for name in REDUCTIONS},
    **{name: _softmax(name) for name in SOFTMAXES},
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "adaptive_max_pool2d": adaptive_max_pool2d,
}
