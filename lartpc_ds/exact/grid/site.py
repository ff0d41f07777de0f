"""What a rule is, and what it may ask of the trace that runs it."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, EmptyTile, Run
from lartpc_ds.layout import Bounds

__all__ = ["THIN_PIXELS", "Pair", "Result", "Rule", "Site", "filled", "map_cut", "pair"]

THIN_PIXELS = 4

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


def filled(site: Site, mapped: Sequence[int], size: int, axis: int) -> Bounds:
    """Bounds near the `mapped` ones that leave every tile one of `size` rows (or columns); refused if there is none."""
    tiles = len(mapped) - 1
    if size < tiles:
        raise site.refuse(
            f"cuts {size} {('rows', 'columns')[axis]} of its output into {tiles} tiles: a tile is empty; "
            f"take fewer layout.{('rows', 'cols')[axis]}, or leave the tiles earlier with layout.gather_at",
            EmptyTile,
        )
    inner = list(mapped[1:-1])
    for place, bound in enumerate(inner):
        inner[place] = max(bound, place + 1, inner[place - 1] + 1 if place else 1)
    for place in reversed(range(len(inner))):
        after = inner[place + 1] if place + 1 < len(inner) else size
        inner[place] = min(inner[place], after - 1)
    bounds = (0, *inner, size)
    if site.refuse_thin and tiles > 1 and any(stop - start < THIN_PIXELS for start, stop in itertools.pairwise(bounds)):
        raise site.refuse("leaves tiles that are thinner than is worth their halos", EmptyTile)
    return bounds
