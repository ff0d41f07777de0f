"""What a rule is, and what it may ask of the trace that runs it."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from lartpc_ds.parallel.cuts import Cut, Run

__all__ = ["Pair", "Result", "Rule", "Site", "map_cut", "pair"]

Pair = tuple[int, int]


class Site(Protocol):
    """Where a rule runs: the traced call, and how its tensors are cut."""

    refuse_thin: bool

    def cut_of(self, tensor: Any) -> Cut | None:
        """How a tensor is cut; None for whole tensors and for anything else."""

    def mark(self, tensor: Tensor, cut: Cut | None) -> Tensor:
        """Say how a result is cut."""

    def refuse(self, reason: str, kind: type[Exception] | None = None) -> Exception:
        """The error to raise, naming layer and line."""


Result = tuple[Any, Run | None]
Rule = Callable[..., Result]


def pair(value: Any) -> Pair:
    """An argument that torch takes as one number or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


def map_cut(site: Site, x: Tensor) -> Cut:
    """The cut of a map (N, C, rows, columns); refused for any other."""
    cut = site.cut_of(x)
    if cut is None or cut.dims != (x.ndim - 2, x.ndim - 1) or x.ndim != 4:
        raise site.refuse("needs rows and columns in the last two of four dimensions")
    return cut
