"""An `Operator` says what happens to one torch function on maps that are cut; a `CallSite` is the call at hand.

A map can be cut in three ways: into tiles, one per rank; into strips of rows, which one device computes one after the
other; and into patches, of which equal ones are computed once. A family (one module of this folder) says for each of
its functions what happens in each case, and reads the function's arguments once for all. A further way to cut a map is
a further field of `Operator` and a further rule in each family that supports it; a field that is left out means that
the function is refused there. Rejected: a table for each way, which would read every call three times.

A rule makes the call itself. On tiles it runs while a model is traced on meta tensors of the whole image; on strips and
patches it runs each time. Rules that only move dimensions, or act on every pixel by itself, are the same for all.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, EmptyTile, Run
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.readings import PixelReading
from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.layout import Bounds

__all__ = [
    "PATCHES",
    "STRIPS",
    "THIN_PIXELS",
    "TILES",
    "CallSite",
    "Numbers",
    "Operator",
    "Pair",
    "PatchCallSite",
    "Result",
    "Rule",
    "StripCallSite",
    "TileCallSite",
    "Words",
    "canonical",
    "cut_dims",
    "everywhere",
    "filled",
    "map_cut",
    "map_patches",
    "map_rows",
    "needs_map",
    "pair",
]

THIN_PIXELS = 4
"""A tile of fewer rows or columns than this is not worth its halo."""

Pair = tuple[int, int]


class Words(NamedTuple):
    """The words that messages use for the parts of a map, and what they advise."""

    part: str
    parts: str
    lines: str
    """The dimensions that are cut."""
    way_out: str
    """What a user can do where an operator is refused."""
    pool: str
    """How a user gets rid of the pixels before such an operator."""


TILES = Words(
    "tile",
    "tiles",
    "rows or columns",
    "leave the tiles before it with layout.gather_at, or set layout.rows = layout.cols = 1",
    "pool them to one pixel first (AdaptiveAvgPool2d(1))",
)
STRIPS = Words(
    "strip",
    "strips",
    "rows",
    "end the streamed front before it with memory.stream_until, or set memory.stream_strips = 1",
    "pool them after the streamed front",
)
PATCHES = Words(
    "patch",
    "patches",
    "rows, columns or events",
    "end the lit part before it with memory.lit_until, or set memory.lit_block = 0",
    "pool them to one pixel first (AdaptiveAvgPool2d(1))",
)


class CallSite(Protocol):
    """The call at hand: how its tensors are cut, and how to refuse it."""

    words: Words

    def dims_of(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the dimensions of a tensor that are cut, or None for whole tensors (weights) and other values."""

    def size_of(self, tensor: Any) -> tuple[int, ...]:
        """Return the sizes of these dimensions in the whole map."""

    def cut_like(self, result: Tensor, source: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Note that a result is cut as `source` is, in its own dimensions `dims`, and return the result."""

    def refuse(self, reason: str, kind: type[Exception] | None = None) -> Exception:
        """Return the error to raise, which names layer and line."""


class TileCallSite(CallSite, Protocol):
    """A call on maps that are cut into tiles; the tensors at hand are whole, on the meta device."""

    refuse_thin: bool
    """Whether to refuse tiles that are thinner than their halos, or too thin to be worth the messages."""
    one_tile: bool
    """Whether the tile is the whole image."""

    def cut_of(self, tensor: Any) -> Cut | None:
        """Return how a tensor is cut, or None for whole tensors and other values."""

    def mark(self, tensor: Tensor, cut: Cut | None) -> Tensor:
        """Note how a result is cut, and return it."""

    def next_draw(self) -> str:
        """Return a name for the random numbers of the call at hand, the same in every run of the model."""


class StripCallSite(CallSite, Protocol):
    """A call on one strip; the tensors at hand have the strip's rows only."""

    def rows_of(self, tensor: Any) -> Rows | None:
        """Return which rows a tensor has, or None for whole tensors and other values."""

    def mark_rows(self, tensor: Tensor, rows: Rows) -> Tensor:
        """Note which rows a result has, and return it."""


class PatchCallSite(CallSite, Protocol):
    """A call on the distinct patches of a map, (patches, C, rows, columns of a patch)."""

    tiles: Tiles
    """The groups over which batch statistics run, and the maps that are made again."""
    known_readings: dict[Hashable, tuple[Patches, Patches, PixelReading]]
    """The patches that a windowed operator reads and gives, and how, for all operators with the same windows."""

    def lean_run(self, name: str) -> Run | None:
        """Return what runs in place of the norm at hand, together with the ReLU after it, if lean norms are planned."""

    def patches_of(self, tensor: Any) -> Patches | None:
        """Return the patches of a tensor, or None for whole tensors and other values."""

    def mark_patches(self, tensor: Tensor, patches: Patches, dims: tuple[int, ...] = (0, 2, 3)) -> Tensor:
        """Note whose patches a result has, in which dimensions they, their rows and columns are, and return it."""


Result = tuple[Any, Run | None]
"""What the function gives, and what runs in its place on tiles.

The second is None where torch's own function is right on a tile or strip.
"""
Rule = Callable[..., Result]
"""A rule is called as rule(site, function, *args, **kwargs) with the arguments of the call."""


class Numbers(Enum):
    """Which plain numbers among the arguments of a call must be the same on every tile or strip."""

    SHARED = auto()
    """All numbers must be the same."""
    PLANNED = auto()
    """All numbers must be the same, unless the call has a plan, which holds those of the whole image."""
    OWN = auto()
    """No number must be the same: they are sizes of the part, and the shapes of the results are compared instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """What is known about a torch function on maps that are cut."""

    on_tiles: Rule | None = None
    on_whole: Rule | None = None
    """The rule for a call on tensors that every rank of the tiles holds whole.

    It is there where torch's own function would differ between ranks.
    """
    on_strips: Rule | None = None
    on_patches: Rule | None = None
    joins: bool = False
    """Whether it may take several maps that are cut; any other function takes one, as its first argument."""
    numbers: Numbers = Numbers.SHARED
    may_be_unplanned: bool = False
    """Whether a call on a tile that no plan knows is let through, because engines make it in their hooks."""
    with_relu: Callable[..., Run] | None = None
    """For a norm, this makes what runs in its place together with the ReLU that is all that reads its result."""
    fresh_gradient: bool = False
    """Whether its backward pass gives a gradient that nobody else holds."""


def everywhere(
    rule: Rule, *, joins: bool = False, numbers: Numbers = Numbers.SHARED, may_be_unplanned: bool = False
) -> Operator:
    """Return an operator whose rule is the same on tiles, on strips and on patches."""
    return Operator(
        on_tiles=rule,
        on_strips=rule,
        on_patches=rule,
        joins=joins,
        numbers=numbers,
        may_be_unplanned=may_be_unplanned,
    )


def canonical(function: Callable[..., Any]) -> str:
    """Return a function's name without the marks of its variants: `relu_` is relu, and `__getitem__` is getitem."""
    name = getattr(function, "__name__", "?").strip("_")
    return name[1:] if name in ("iadd", "isub", "imul") else {"truediv": "div", "itruediv": "div"}.get(name, name)


def pair(value: Any) -> Pair:
    """Return the two numbers of an argument that torch takes as one number or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


def cut_dims(site: CallSite, x: Tensor) -> tuple[int, ...]:
    """Return the dimensions that are cut of the map that a function takes; a whole tensor is refused."""
    dims = site.dims_of(x)
    if dims is None:
        raise site.refuse(f"takes a map that is cut into {site.words.parts} in place of a whole tensor")
    return dims


def needs_map(site: CallSite, x: Tensor) -> tuple[int, ...]:
    """Return the dimensions that are cut of a map (N, C, rows, columns); any other tensor is refused."""
    dims = cut_dims(site, x)
    if x.ndim != 4 or dims not in ((2, 3), (2,), (0, 2, 3)):
        raise site.refuse("needs rows and columns in the last two of four dimensions")
    return dims


def map_cut(site: TileCallSite, x: Tensor) -> Cut:
    """Return the cut of a map (N, C, rows, columns); any other tensor is refused."""
    needs_map(site, x)
    cut = site.cut_of(x)
    assert cut is not None
    return cut


def map_rows(site: StripCallSite, x: Tensor) -> Rows:
    """Return the rows of a map (N, C, rows, columns); any other tensor is refused."""
    needs_map(site, x)
    rows = site.rows_of(x)
    assert rows is not None
    return rows


def map_patches(site: PatchCallSite, x: Tensor) -> Patches:
    """Return the patches of a map (patches, C, rows, columns); any other tensor is refused."""
    needs_map(site, x)
    patches = site.patches_of(x)
    assert patches is not None
    return patches


def filled(site: TileCallSite, mapped: Sequence[int], size: int, axis: int) -> Bounds:
    """Return bounds near the `mapped` ones that leave every tile one of `size` rows (or columns).

    It is refused if there are none.
    """
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
