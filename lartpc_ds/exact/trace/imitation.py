"""A plan of tiles, and the proof before any process starts that the tiles of every rank follow it.

Each rank is imitated on meta tensors of its tile. It must make the calls that the trace made on the whole image, in the
same order, with the same numbers, on its parts of the same maps. So nothing that a model computes from the size of its
input, by whatever way, can differ on a tile unseen. And its backward pass must send messages and complete weight
gradients in the order of every other rank's, so that no two ranks wait for each other (`grid.order`). Rejected:
trusting the trace of the whole image alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import Call, Cut, Key, Run, local_shape, tensors_of
from lartpc_ds.exact.grid.order import backward_order
from lartpc_ds.exact.grid.tiles import Imagined, Tiles
from lartpc_ds.exact.grid.windows import Rect, tile_of
from lartpc_ds.exact.ops.convolution import Remake
from lartpc_ds.exact.ops.gathering import Gather
from lartpc_ds.exact.ops.randomness import Draw, Dropout
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.dry_run import dry_run
from lartpc_ds.exact.trace.module_state import unchanged
from lartpc_ds.exact.trace.modules import announced
from lartpc_ds.exact.trace.replay import Replay, Seen, table
from lartpc_ds.layout import Bounds, Layout

__all__ = ["TRACED_EVENTS", "Imitation", "TilePlan", "compare", "images_of", "imagined", "refuse_ambiguous"]

TRACED_EVENTS = 2
"""Reshapes could not tell one event from a dimension of one row."""


@dataclass(frozen=True)
class TilePlan:
    """How a model runs on a grid of tiles; it is the same on every rank."""

    image: tuple[int, int, int]
    """The channels, rows and columns of the whole image."""
    bounds: tuple[Bounds, Bounds]
    traces: tuple[tuple[Call, ...], ...]
    """The calls of a run as the model stands, and of a run in evaluation."""
    output: Cut | None
    """The cut of the model's result; if it is None, the result is whole and the same on every rank."""
    lean: bool = False
    """Whether norms apply the ReLU that follows them, where it is all that reads them, and pools keep bytes."""

    @property
    def calls(self) -> list[Call]:
        """The calls of all traces."""
        return [call for trace in self.traces for call in trace]

    @property
    def remade_at(self) -> list[str]:
        """The modules whose large result is made again from their small input."""
        return sorted({call.owner for call in self.calls if isinstance(call.run, Remake)})

    @property
    def lean_norms(self) -> dict[tuple[str, str], Run]:
        """What runs in place of the norms that take the ReLU after them, by (module, function)."""
        return {
            (call.owner, call.name): call.run
            for call in self.calls
            if call.run is not None and OPERATORS[call.name].with_relu is not None and getattr(call.run, "relu", False)
        }

    @property
    def gathered_at(self) -> list[str]:
        """The modules whose input every rank gathers."""
        return sorted({call.owner for call in self.calls if isinstance(call.run, Gather)})

    def tile(self, row: int, col: int) -> Rect:
        """Return the rows and columns of the image that the rank at (row, col) owns."""
        return tile_of(self.bounds, row, col)


def images_of(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return images without numbers, of the dtype of the model."""
    dtypes = [value.dtype for value in model.state_dict().values() if value.is_floating_point()]
    return torch.empty(shape, dtype=dtypes[0] if dtypes else torch.float32, device="meta")


def refuse_ambiguous(plan: TilePlan, layout: Layout) -> None:
    """Refuse calls that a rank could not tell apart and that are not the same call.

    Ranks look a call up by its shapes and numbers.
    """
    for row, col in _positions(layout):
        seen: dict[tuple[str, Key, tuple[Any, ...]], Call] = {}
        for call in plan.calls:
            other = seen.setdefault((call.owner, call.key(row, col), call.all_numbers), call)
            if other.run == call.run:
                continue
            why = f"for maps of different sizes that are equal on the tile at row {row}, column {col}"
            if isinstance(call.run, Dropout | Draw):
                why = "twice for maps of one size, and would drop the same pixels"
            raise UserError(
                f"{call.owner or 'the model'} ({call.where}): {call.name} is used {why}; "
                "use a module of its own for each"
            )


def _positions(layout: Layout) -> list[tuple[int, int]]:
    """Return the places of the grid to look at: all places of a small grid, and a spread of a large one."""
    rows, cols = (sorted({size * part // 8 for part in range(8)} | {size - 1}) for size in (layout.rows, layout.cols))
    return [(row, col) for row in rows for col in cols]


@dataclass
class Imitation:
    """The calls of a rank on meta tensors, its result, and the bytes that it would send."""

    seen: list[Seen]
    result: Any = None
    sent_bytes: int = 0
    error: UserError | None = None


def imagined(plan: TilePlan, model: nn.Module, layout: Layout, row: int, col: int, events: int) -> Imitation:
    """Run the rank at (row, col) on meta tensors."""
    group = Imagined(layout.tiles, row * layout.cols + col)
    tiles = Tiles(layout.rows, layout.cols, group, group, Imagined(1, 0))
    replay = Replay(table(plan.calls, row, col), tiles, lean=plan.lean)
    replay.seen = []
    (top, bottom), (left, right) = plan.tile(row, col)
    images = images_of(model, (events, plan.image[0], bottom - top, right - left))
    imitation = Imitation(replay.seen)
    try:
        with unchanged(model), dry_run(model), announced(model, replay.around):
            imitation.result = model(images)
    except UserError as error:
        imitation.error = error
    imitation.sent_bytes = group.sent_bytes
    return imitation


def compare(
    plan: TilePlan,
    trace: Sequence[Call],
    results: Sequence[tuple[tuple[int, ...], Cut | None]],
    model: nn.Module,
    layout: Layout,
) -> None:
    """Refuse a model whose tiles do not make the calls of the whole image.

    The tiles of every rank must make them with the same numbers, on parts of the whole image's maps.
    """
    orders: dict[tuple[int, int], list[str]] = {}
    for row, col in _positions(layout):
        at, run = f"the tile at row {row}, column {col}", imagined(plan, model, layout, row, col, TRACED_EVENTS)
        for seen, call in zip(run.seen, trace, strict=False):
            if seen != Seen(call.owner, call.key(row, col), call.numbers, call.run):
                raise _size_dependence(call, seen, row, col)
        if run.error is not None:
            raise UserError(f"{at}: the model cannot run on it: {run.error}") from run.error
        if len(run.seen) != len(trace):
            last = trace[min(len(run.seen), len(trace) - 1)]
            raise UserError(
                f"{last.owner or 'the model'} ({last.where}): {at} makes {len(run.seen)} calls where the whole image "
                f"makes {len(trace)}, up to {last.name}; do not choose by the size of the image what to do"
            )
        shapes = [local_shape(shape, cut, row, col) for shape, cut in results]
        given = [tuple(tensor.shape) for tensor in tensors_of(run.result, {})]
        if given != shapes:
            raise UserError(f"{at}: the model gives {given} where its part of the whole result is {shapes}")
        orders[row, col] = _order(run, model)
    _refuse_other_orders(orders)
    run = imagined(plan, model, layout, 0, 0, TRACED_EVENTS + 1)
    for seen, call in zip(run.seen, trace, strict=False):
        if (call.is_cut or call.run) and (seen.owner, seen.key) != (call.owner, call.key(0, 0)):
            raise UserError(
                f"{call.owner or 'the model'} ({call.where}): {call.name} meets a map whose events are not its first "
                "dimension; on tiles they must be"
            )
    if run.error is not None:
        raise UserError(f"the model cannot run on {TRACED_EVENTS + 1} events: {run.error}") from run.error


def _order(run: Imitation, model: nn.Module) -> list[str]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return backward_order(tensors_of(run.result, {}), names)


def _refuse_other_orders(orders: dict[tuple[int, int], list[str]]) -> None:
    """Refuse ranks that send messages and complete weight gradients in different orders."""
    (first, expected), *others = orders.items()
    for at, order in others:
        if order != expected:
            pairs = itertools.zip_longest(order, expected, fillvalue="its end")
            here, there = next(pair for pair in pairs if pair[0] != pair[1])
            raise UserError(
                f"the backward pass of the tile at row {at[0]}, column {at[1]} comes to {here} where that of the tile "
                f"at row {first[0]}, column {first[1]} comes to {there}; the ranks would wait for each other, so this "
                "model cannot be trained on tiles; leave the tiles before that layer with layout.gather_at"
            )


def _size_dependence(call: Call, seen: Seen, row: int, col: int) -> UserError:
    message = f"{call.owner or 'the model'} ({call.where}): {call.name} depends on the size of the image: "
    if (seen.owner, seen.key[0]) != (call.owner, call.name):
        message += (
            f"on the tile at row {row}, column {col} {seen.key[0]} of {seen.owner or 'the model'} takes its place"
        )
    elif seen.key != call.key(row, col):
        message += f"a tile gives it {list(seen.key[1])}, its part of the whole image is {list(call.key(row, col)[1])}"
    elif seen.numbers != call.numbers:
        message += f"it has the numbers {seen.numbers} on a tile, {call.numbers} on the whole image"
    else:
        message += (
            f"on the tile at row {row}, column {col} it has the numbers of another call on a map of this size, where "
            f"it has the numbers {call.all_numbers} on the whole image"
        )
    return UserError(f"{message}; do not compute with the size")
