"""`spatialize`: one network on one event over a grid of ranks, exactly.

The order: cut the image, trace the model on meta tensors of the whole image, refuse what has no proven form, look that
the tiles of every rank make the same calls, then let every module find its plans. Nothing of the model is replaced, so
its parameters, buffers, hooks and `state_dict` keys are as before.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lartpc_ds.errors import UserError
from lartpc_ds.layout import Bounds, Layout, tile_bounds
from lartpc_ds.parallel.cuts import Call, Cut, EmptyTile, Key
from lartpc_ds.parallel.groups import Groups
from lartpc_ds.parallel.operators import Gather
from lartpc_ds.parallel.randomness import Draw, Dropout
from lartpc_ds.parallel.replay import Replay, table
from lartpc_ds.parallel.statistics import BatchNorm
from lartpc_ds.parallel.tiles import Clock, Imagined, Tiles
from lartpc_ds.parallel.trace import Tracer

__all__ = ["TilePlan", "TileShare", "convert", "plan_tiles", "shares", "spatialize"]

_TRACED_EVENTS = 2  # not 1, which reshapes could not tell from a dimension of one row


@dataclass(frozen=True)
class TilePlan:
    """How a model runs on a grid of tiles; the same on every rank."""

    image: tuple[int, int, int]
    """Channels, rows and columns of the whole image."""
    bounds: tuple[Bounds, Bounds]
    traces: tuple[tuple[Call, ...], ...]
    """The calls of a run as the model stands, and of one in evaluation."""
    gathers: dict[str, Gather]
    output: Cut | None
    """How the model's result is cut; None: it is whole, and the same on every rank."""

    @property
    def calls(self) -> list[Call]:
        """Of all traces."""
        return [call for trace in self.traces for call in trace]

    def tile(self, row: int, col: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the image that the rank at (row, col) owns."""
        rows, cols = self.bounds
        return (rows[row], rows[row + 1]), (cols[col], cols[col + 1])


@dataclass(frozen=True)
class TileShare:
    """One rank's part of a step."""

    rows: tuple[int, int]
    cols: tuple[int, int]
    halo_bytes: int
    """Sent in a forward pass of one event; the backward pass sends as much again, less the image's own halo."""
    work: float
    """Of the tile group's floating-point operations."""


def plan_tiles(
    model: nn.Module, layout: Layout, image: tuple[int, int, int], gather_at: str = "auto", norm_scope: str = "tiles"
) -> TilePlan:
    """Plan and check a model for images of (channels, rows, columns) on the tiles of `layout`; moves no data.

    Raises:
        UserError: an operator without a proven form on tiles, an empty tile, a name in `gather_at` that is no module:
            naming layer, line and what to change.
    """
    bounds = tile_bounds(image[1], layout.rows), tile_bounds(image[2], layout.cols)
    shadow = copy.deepcopy(model).to("meta")
    if gather_at not in ("auto", "never") and gather_at not in dict(shadow.named_modules()):
        names = ", ".join(name for name, _ in shadow.named_children())
        raise UserError(f'layout.gather_at = {gather_at!r}: no such block; "auto", "never" or a module such as {names}')
    if gather_at != "auto":
        return _checked(shadow, layout, image, bounds, None if gather_at == "never" else gather_at, norm_scope)
    return _gathered_in_time(shadow, layout, image, bounds, norm_scope)


def _gathered_in_time(
    model: nn.Module, layout: Layout, image: tuple[int, int, int], bounds: tuple[Bounds, Bounds], norm_scope: str
) -> TilePlan:
    """Stay on tiles as long as every tile is worth its halo, then gather before the block that is not."""
    try:
        return _checked(model, layout, image, bounds, None, norm_scope, refuse_thin=True)
    except EmptyTile as error:
        parts = error.layer.split(".")
    for depth in range(len(parts), 0, -1):
        block = ".".join(parts[:depth])
        with contextlib.suppress(UserError):
            return _checked(model, layout, image, bounds, block or None, norm_scope, refuse_thin=True)
    # where no single block can be gathered, thin tiles are slow but right
    return _checked(model, layout, image, bounds, None, norm_scope)


def _checked(
    model: nn.Module,
    layout: Layout,
    image: tuple[int, int, int],
    bounds: tuple[Bounds, Bounds],
    gather_at: str | None,
    norm_scope: str,
    refuse_thin: bool = False,
) -> TilePlan:
    traces: list[tuple[Call, ...]] = []
    gathers: dict[str, Gather] = {}
    output = None
    with _both_modes(model) as modes:
        for _ in modes:
            tracer = Tracer(refuse_thin)
            images = tracer.mark(_images(model, image), Cut((2, 3), bounds))
            with torch.no_grad(), tracer.inside(model, gather_at):
                result = model(images)
            output = tracer.cut_of(result)
            traces.append(tuple(_needed(call, layout, norm_scope) for call in tracer.calls))
            gathers |= tracer.gathers
    plan = TilePlan(image, bounds, tuple(traces), gathers if layout.tiles > 1 else {}, output)
    if layout.tiles > 1:
        _refuse_ambiguous(plan, layout)
        with _both_modes(model) as modes:
            for trace, _ in zip(traces, modes, strict=True):
                _compare(plan, trace, model, layout)
    return plan


@contextmanager
def _both_modes(model: nn.Module) -> Iterator[Iterator[None]]:
    """First the modes that the modules are in, then evaluation; afterwards as before."""
    before = [module.training for module in model.modules()]

    def modes() -> Iterator[None]:
        yield
        model.eval()
        yield

    yield modes()
    for module, mode in zip(model.modules(), before, strict=True):
        module.training = mode


def _images(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    dtypes = [value.dtype for value in model.state_dict().values() if value.is_floating_point()]
    return torch.empty(_TRACED_EVENTS, *shape, dtype=dtypes[0] if dtypes else torch.float32, device="meta")


def _needed(call: Call, layout: Layout, norm_scope: str) -> Call:
    """Torch's own functions do, where there is one tile; masks and statistics over data have to be ours always."""
    random = isinstance(call.run, Dropout | Draw)
    norm = isinstance(call.run, BatchNorm) and norm_scope == "all" and layout.data > 1
    whole_norm = isinstance(call.run, BatchNorm) and call.run.whole and not norm
    return call if random or norm or (layout.tiles > 1 and not whole_norm) else replace(call, run=None)


def _refuse_ambiguous(plan: TilePlan, layout: Layout) -> None:
    """Ranks look a call up by its shapes; calls that some rank could not tell apart must be the same call."""
    for row, col in _positions(layout):
        seen: dict[tuple[str, Key], Call] = {}
        for call in plan.calls:
            other = seen.setdefault((call.owner, call.key(row, col)), call)
            if other.run != call.run:
                raise UserError(
                    f"{call.owner or 'the model'} ({call.where}): {call.name} is used for maps of different sizes "
                    f"that are equal on the tile at row {row}, column {col}; use a module of its own for each"
                )


def _positions(layout: Layout) -> list[tuple[int, int]]:
    """Places of the grid to look at: all of a small one, a spread of a large one."""
    rows, cols = (sorted({size * part // 8 for part in range(8)} | {size - 1}) for size in (layout.rows, layout.cols))
    return [(row, col) for row in rows for col in cols]


class Imitation(NamedTuple):
    """What a rank on meta tensors gave, did and sent."""

    result: Any
    seen: list[tuple[str, str, tuple[float, ...]]]
    sent_bytes: int


def _imagined(plan: TilePlan, model: nn.Module, layout: Layout, row: int, col: int, events: int) -> Imitation:
    """Run the rank at (row, col) on meta tensors."""
    group = Imagined(layout.tiles, row * layout.cols + col)
    tiles = Tiles(layout.rows, layout.cols, group, group, Imagined(1, 0))
    replay = Replay(table(plan.calls, row, col), plan.gathers, tiles)
    replay.seen = []
    (top, bottom), (left, right) = plan.tile(row, col)
    with torch.no_grad(), replay.attached(model):
        result = model(_images(model, (plan.image[0], bottom - top, right - left))[:events])
    return Imitation(result, replay.seen, group.sent_bytes)


def _compare(plan: TilePlan, trace: Sequence[Call], model: nn.Module, layout: Layout) -> None:
    """The tiles of every rank must make the calls of the whole image, with the same numbers."""
    expected = [(call.owner, call.name, call.compared) for call in trace]
    for row, col in _positions(layout):
        try:
            seen = _imagined(plan, model, layout, row, col, _TRACED_EVENTS).seen
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"the tile at row {row}, column {col}: the model cannot run on it: {error}") from None
        for (owner, name, numbers), call in zip(seen, trace, strict=False):
            if (owner, name, numbers) != (call.owner, call.name, call.compared):
                raise UserError(
                    f"{call.owner or 'the model'} ({call.where}): {call.name} depends on the size of the image ({name} "
                    f"with {numbers} on a tile, {call.compared} on the whole image); do not compute with the size"
                )
        if len(seen) != len(expected):
            raise UserError(f"the tile at row {row}, column {col}: the model makes other calls than on the whole image")


def shares(plan: TilePlan, model: nn.Module, layout: Layout) -> list[TileShare]:
    """What each tile has of a step, row by row; a pure calculation on meta tensors."""
    shadow = copy.deepcopy(model).to("meta")
    counted = []
    for row in range(layout.rows):
        for col in range(layout.cols):
            with FlopCounterMode(display=False) as counter:
                run = _imagined(plan, shadow, layout, row, col, 1)
            counted.append((plan.tile(row, col), run.sent_bytes, counter.get_total_flops()))
    total = sum(flops for _, _, flops in counted)
    return [TileShare(rows, cols, sent, flops / max(total, 1)) for (rows, cols), sent, flops in counted]


def convert(model: nn.Module, plan: TilePlan, tiles: Tiles) -> nn.Module:
    """Let the modules of `model` find the plans of this rank; changes and returns `model`."""
    tile = plan.tile(tiles.row, tiles.col)
    local = [stop - start for start, stop in tile]

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        if list(args[0].shape[2:]) != local:
            raise ValueError(
                f"images: must be this rank's tile of {local} rows and columns, are {tuple(args[0].shape)}"
            )

    model.register_forward_pre_hook(check)
    Replay(table(plan.calls, tiles.row, tiles.col), plan.gathers, tiles).attach(model)
    return model


def spatialize(
    model: nn.Module,
    layout: Layout,
    groups: Groups,
    image_size: tuple[int, int, int],
    *,
    gather_at: str = "auto",
    norm_scope: str = "tiles",
    overlap: bool = True,
    clock: Clock | None = None,
) -> nn.Module:
    """Make `model` run on this rank's tile of images of `image_size` (channels, rows, columns); returns `model`.

    Its forward then takes (events, channels, rows and columns of `plan_tiles(...).tile(row, col)`), and every
    collective in it has its true adjoint: average all gradients over all ranks, as data-parallel replicas do, and they
    are those of one device. An input's gradient is `layout.tiles` times the one-device one.

    Args:
        model: any nn.Module of one device; its `state_dict` keys do not change.
        layout: the grid; the world must have its size.
        groups: of this rank, from `make_groups(layout)`.
        image_size: of the whole image; fixed from here on.
        gather_at: "auto", "never", or the module whose input every rank gathers, to run whole from there on.
        norm_scope: batch statistics over "tiles" of one event or over "all" data ranks too.
        overlap: compute a convolution's interior while its halo is under way.
        clock: set its step and micro-batch before each forward to make dropout masks repeatable; by default every
            training forward draws others.

    Raises:
        UserError: as `plan_tiles`.
    """
    plan = plan_tiles(model, layout, image_size, gather_at, norm_scope)
    if clock is None:
        clock = Clock()
        model.register_forward_pre_hook(_tick(clock))
    return convert(model, plan, groups.tiles(norm_scope=norm_scope, overlap=overlap, clock=clock))


def _tick(clock: Clock) -> Any:
    def tick(module: nn.Module, args: Any) -> None:
        clock.step += module.training

    return tick
