"""What a rule of strips is, and what it may ask of the mode that runs it."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from lartpc_ds.exact.memory.rows import Rows

__all__ = ["StripRule", "StripSite", "map_rows", "rows_in"]


class StripSite(Protocol):
    """What a rule may ask: the rows of the tensors of the call at hand."""

    def rows_of(self, tensor: Any) -> Rows | None:
        """None for whole tensors, such as weights."""

    def mark(self, tensor: Tensor, rows: Rows) -> Tensor:
        """Say which rows a result has."""

    def refuse(self, reason: str) -> Exception:
        """The error to raise, naming layer and line."""


StripRule = Callable[..., Any]
"""Called as rule(site, function, *args, **kwargs) in place of function(*args, **kwargs)."""


def rows_in(site: StripSite, x: Tensor) -> Rows:
    """The rows of the map that a function is of."""
    rows = site.rows_of(x)
    if rows is None:
        raise site.refuse("takes a map that is cut into strips in place of a whole tensor")
    return rows


def map_rows(site: StripSite, x: Tensor) -> Rows:
    """Those of a map (N, C, rows, columns); refused for any other."""
    rows = rows_in(site, x)
    if x.ndim != 4 or rows.dim != 2:
        raise site.refuse("needs rows and columns in the last two of four dimensions")
    return rows
