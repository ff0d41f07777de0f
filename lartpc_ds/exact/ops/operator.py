"""What a family of torch functions says of each of its members, and what it may ask of the call at hand.

A map can be cut in two ways: into tiles, one per rank, and into strips of rows, which one device computes one after the
other. A family (one module of this folder) says for each of its functions what happens in either case, and reads the
function's arguments once for both. A further way to cut a map is a further field of `Operator` and a further rule in
each family that supports it; a field that is left out means that the function is refused there.

A rule makes the call itself. On tiles it runs while a model is traced on meta tensors of the whole image; on strips it
runs for each strip. Rules that only move dimensions, or act on every pixel by itself, are the same for both.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, EmptyTile, Run
from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.layout import Bounds

__all__ = [
    "STRIPS",
    "THIN_PIXELS",
    "TILES",
    "CallSite",
    "Numbers",
    "Operator",
    "Pair",
    "Result",
    "Rule",
    "StripCallSite",
    "TileCallSite",
    "Words",
    "canonical",
    "cut_dims",
    "filled",
    "map_cut",
    "map_rows",
    "needs_map",
    "pair",
]

THIN_PIXELS = 4
"""A tile of fewer rows or columns than this is not worth its halo."""

Pair = tuple[int, int]


class Words(NamedTuple):
    """How messages call the parts of a map, and what they advise."""

    part: str
    parts: str
    lines: str
    """The dimensions that are cut."""
    way_out: str
    """What a user can do where an operator is refused."""


TILES = Words(
    "tile", "tiles", "rows or columns", "leave the tiles before it with layout.gather_at, or set them to 1 x 1"
)
STRIPS = Words(
    "strip",
    "strips",
    "rows",
    "end the streamed front before it with memory.stream_until, or set memory.stream_strips = 1",
)


class CallSite(Protocol):
    """The call at hand: how its tensors are cut, and how to refuse it."""

    words: Words

    def dims_of(self, tensor: Any) -> tuple[int, ...] | None:
        """The dimensions of a tensor that are cut; None for whole tensors, such as weights, and anything else."""

    def size_of(self, tensor: Any) -> tuple[int, ...]:
        """The sizes of these dimensions in the whole map."""

    def cut_like(self, result: Tensor, source: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Note that a result is cut as `source` is, in its own dimensions `dims`; returns the result."""

    def refuse(self, reason: str, kind: type[Exception] | None = None) -> Exception:
        """The error to raise, naming layer and line."""


class TileCallSite(CallSite, Protocol):
    """A call on maps that are cut into tiles; the tensors at hand are whole, on the meta device."""

    refuse_thin: bool
    """Refuse tiles that are thinner than their halos, or than is worth the messages."""
    one_tile: bool
    """The tile is the whole image."""

    def cut_of(self, tensor: Any) -> Cut | None:
        """How a tensor is cut; None for whole tensors and for anything else."""

    def mark(self, tensor: Tensor, cut: Cut | None) -> Tensor:
        """Note how a result is cut; returns it."""

    def next_draw(self) -> str:
        """A name for the random numbers of the call at hand, the same in every run of the model."""


class StripCallSite(CallSite, Protocol):
    """A call on one strip; the tensors at hand have its rows only."""

    def rows_of(self, tensor: Any) -> Rows | None:
        """Which rows a tensor has; None for whole tensors and for anything else."""

    def mark_rows(self, tensor: Tensor, rows: Rows) -> Tensor:
        """Note which rows a result has; returns it."""


Result = tuple[Any, Run | None]
"""What the function gives, and what stands for it on tiles; None: torch's own function is right on a tile or strip."""
Rule = Callable[..., Result]
"""Called as rule(site, function, *args, **kwargs) with the arguments of the call."""


class Numbers(Enum):
    """Which plain numbers among the arguments of a call must be the same on every tile or strip."""

    SHARED = auto()
    """All of them."""
    PLANNED = auto()
    """All of them, unless the call has a plan: the plan holds those of the whole image."""
    OWN = auto()
    """None: they are sizes of the tile, or count steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """What is known of a torch function on maps that are cut."""

    on_tiles: Rule | None = None
    on_whole: Rule | None = None
    """For a call on tensors that every rank of the tiles holds whole, where torch's own would differ between ranks."""
    on_strips: Rule | None = None
    joins: bool = False
    """It may take several maps that are cut; any other function takes one, as its first argument."""
    numbers: Numbers = Numbers.SHARED
    may_be_unplanned: bool = False
    """A call of it on a tile that no plan knows is let through, because engines call it in their hooks."""
    with_relu: Callable[..., Run] | None = None
    """For a norm: makes what stands for it together with the ReLU that is all that reads its result."""
    fresh_gradient: bool = False
    """Its backward pass gives a gradient that nobody else holds."""


def canonical(function: Callable[..., Any]) -> str:
    """A function's name without the marks of its variants: `relu_` is relu, `__getitem__` getitem."""
    name = getattr(function, "__name__", "?").strip("_")
    return name[1:] if name in ("iadd", "isub", "imul") else {"truediv": "div", "itruediv": "div"}.get(name, name)


def pair(value: Any) -> Pair:
    """An argument that torch takes as one number or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


def cut_dims(site: CallSite, x: Tensor) -> tuple[int, ...]:
    """The dimensions of the map that a function is of; refused for a whole tensor."""
    dims = site.dims_of(x)
    if dims is None:
        raise site.refuse(f"takes a map that is cut into {site.words.parts} in place of a whole tensor")
    return dims


def needs_map(site: CallSite, x: Tensor) -> tuple[int, ...]:
    """The dimensions of a map (N, C, rows, columns) that are cut; refused for any other tensor."""
    dims = cut_dims(site, x)
    if x.ndim != 4 or dims not in ((2, 3), (2,)):
        raise site.refuse("needs rows and columns in the last two of four dimensions")
    return dims


def map_cut(site: TileCallSite, x: Tensor) -> Cut:
    """The cut of a map (N, C, rows, columns); refused for any other tensor."""
    needs_map(site, x)
    cut = site.cut_of(x)
    assert cut is not None
    return cut


def map_rows(site: StripCallSite, x: Tensor) -> Rows:
    """The rows of a map (N, C, rows, columns); refused for any other tensor."""
    needs_map(site, x)
    rows = site.rows_of(x)
    assert rows is not None
    return rows


def filled(site: TileCallSite, mapped: Sequence[int], size: int, axis: int) -> Bounds:
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
