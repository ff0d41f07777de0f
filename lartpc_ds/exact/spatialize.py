"""`spatialize` runs one network on one event over a grid of ranks, exactly.

The order is: cut the image, trace the model on meta tensors of the whole image, refuse what has no proven form, check
that the tiles of every rank make the same calls, then let every module find its plans. Nothing of the model is
replaced, so its parameters, buffers, hooks and `state_dict` keys are as before. Rejected: replacing layers by parallel
ones, which covers only the layers that somebody wrote a twin of.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import Call, Cut, EmptyTile, Run, tensors_of
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.exact.grid.tiles import Clock, Tiles
from lartpc_ds.exact.ops.convolution import Convolution, Remake
from lartpc_ds.exact.ops.norms import BatchNorm
from lartpc_ds.exact.ops.pooling import MaxPool
from lartpc_ds.exact.ops.randomness import Draw, Dropout
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.dry_run import dry_run, shadow_of
from lartpc_ds.exact.trace.followers import Followers, followers
from lartpc_ds.exact.trace.imitation import TRACED_EVENTS, TilePlan, compare, images_of, imagined, refuse_ambiguous
from lartpc_ds.exact.trace.module_state import both_modes, unchanged
from lartpc_ds.exact.trace.modules import announce
from lartpc_ds.exact.trace.replay import Replay, table
from lartpc_ds.exact.trace.trace import Tracer
from lartpc_ds.layout import Bounds, Layout, tile_bounds

__all__ = ["TilePlan", "TileShare", "convert", "plan_tiles", "shares", "spatialize"]


@dataclass(frozen=True)
class TileShare:
    """One rank's part of a step."""

    rows: tuple[int, int]
    cols: tuple[int, int]
    halo_bytes: int
    """The bytes sent in a forward pass of one event.

    The backward pass sends as much again, less the image's own halo.
    """
    work: float
    """The share of the tile group's floating-point operations."""


def plan_tiles(
    model: nn.Module,
    layout: Layout,
    image: tuple[int, int, int],
    gather_at: str = "auto",
    norm_scope: str = "tiles",
    lean_norm: bool = False,
) -> TilePlan:
    """Plan and check a model for images of (channels, rows, columns) on the tiles of `layout`; no data moves.

    With `lean_norm`, a norm that only a ReLU reads keeps one map instead of two.

    Raises:
        UserError: an operator has no proven form on tiles, a tile is empty, or a name in `gather_at` is no module;
            the message names layer, line and what to change.
    """
    shadow = shadow_of(model)
    bounds = tile_bounds(image[1], layout.rows), tile_bounds(image[2], layout.cols)
    request = _Request(layout, image, bounds, norm_scope, lean_norm)
    if gather_at not in ("auto", "never") and gather_at not in dict(shadow.named_modules()):
        names = ", ".join(name for name, _ in shadow.named_children())
        raise UserError(
            f'layout.gather_at = {gather_at!r}: no such block; take "auto", "never" or a module such as {names}'
        )
    if gather_at != "auto":
        return _checked(shadow, request, None if gather_at == "never" else gather_at)
    return _gathered_in_time(shadow, request)


@dataclass(frozen=True)
class _Request:
    """Everything that is asked of a plan except where it gathers."""

    layout: Layout
    image: tuple[int, int, int]
    bounds: tuple[Bounds, Bounds]
    norm_scope: str
    lean_norm: bool

    def run_of(self, call: Call, lean: Followers) -> Run | None:
        """Return what runs in the place of a call, or None for torch's own function.

        On one tile torch's own function is right, except for masks, statistics over data and levers.
        """
        run, layout = call.run, self.layout
        random = isinstance(run, Dropout | Draw)
        norm = isinstance(run, BatchNorm) and self.norm_scope == "all" and layout.data > 1
        whole_norm = isinstance(run, BatchNorm) and run.whole and not norm
        needed = random or norm or (layout.tiles > 1 and not whole_norm)
        run = run if needed else None
        return self._lean(call, run, lean) if self.lean_norm else run

    def _lean(self, call: Call, run: Run | None, lean: Followers) -> Run | None:
        key = call.owner, call.name
        if key in lean.norms and len(call.tensors[0][0]) == 4:
            with_relu = OPERATORS[call.name].with_relu
            assert with_relu is not None
            made: Run = with_relu(whole=not call.is_cut, owns_gradient=key in lean.owners)
            return made
        if isinstance(call.run, Convolution | MaxPool):
            run = call.run  # ours keep less, also where there is only one tile
        return Remake(run) if key in lean.convolutions else run


def _gathered_in_time(model: nn.Module, request: _Request) -> TilePlan:
    """Stay on tiles as long as every tile is worth its halo, then gather before the block that is not."""
    try:
        return _checked(model, request, None, refuse_thin=True)
    except EmptyTile as error:
        parts = error.layer.split(".")
    for depth in range(len(parts), 0, -1):
        block = ".".join(parts[:depth])
        with contextlib.suppress(UserError):
            return _checked(model, request, block or None, refuse_thin=True)
    # where no single block can be gathered, thin tiles are slow but right
    return _checked(model, request, None)


def _checked(model: nn.Module, request: _Request, gather_at: str | None, refuse_thin: bool = False) -> TilePlan:
    layout = request.layout
    traces: list[tuple[Call, ...]] = []
    results: list[list[tuple[tuple[int, ...], Cut | None]]] = []
    output, lean = None, Followers()
    with both_modes(model) as modes:
        for _ in modes:
            tracer = Tracer(refuse_thin=refuse_thin, one_tile=layout.tiles == 1)
            images = tracer.mark(images_of(model, (TRACED_EVENTS, *request.image)), Cut((2, 3), request.bounds))
            followed = layout.tiles > 1 or (request.lean_norm and not traces)
            with torch.no_grad(), unchanged(model), dry_run(model, followed=followed), tracer.inside(model, gather_at):
                result = model(images)
            output = tracer.cut_of(result)
            if not traces:  # this is the mode that the model trains in
                lean = followers(tracer.calls, [tracer.number_of(tensor) for tensor in tensors_of(result, {})])
            traces.append(tuple(replace(call, run=request.run_of(call, lean)) for call in tracer.calls))
            results.append([(tuple(tensor.shape), tracer.cut_of(tensor)) for tensor in tensors_of(result, {})])
            if not isinstance(result, Tensor) and layout.tiles > 1 and any(cut for _, cut in results[-1]):
                raise UserError(
                    f"the model gives a {type(result).__name__} with maps that are cut into tiles; on tiles its result "
                    "must be one tensor, or whole ones"
                )
    plan = TilePlan(request.image, request.bounds, tuple(traces), output, request.lean_norm)
    if layout.tiles > 1:
        refuse_ambiguous(plan, layout)
        with both_modes(model) as modes:
            for trace, result, _ in zip(traces, results, modes, strict=True):
                compare(plan, trace, result, model, layout)
    return plan


def shares(plan: TilePlan, model: nn.Module, layout: Layout) -> list[TileShare]:
    """Return what each tile has of a step, row by row; this is a pure calculation on meta tensors."""
    shadow = shadow_of(model)
    counted = []
    for row in range(layout.rows):
        for col in range(layout.cols):
            with FlopCounterMode(display=False) as counter:
                run = imagined(plan, shadow, layout, row, col, 1)
            assert run.error is None, run.error
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
                f"images: they must be this rank's tile of {local} rows and columns; they are {tuple(args[0].shape)}"
            )

    model.register_forward_pre_hook(check)
    announce(model, Replay(table(plan.calls, tiles.row, tiles.col), tiles, lean=plan.lean).around)
    return model


def spatialize(
    model: nn.Module,
    layout: Layout,
    groups: Groups,
    image_size: tuple[int, int, int],
    *,
    gather_at: str = "auto",
    norm_scope: str = "tiles",
    lean_norm: bool = False,
    overlap: bool = True,
    clock: Clock | None = None,
) -> nn.Module:
    """Make `model` run on this rank's tile of images of `image_size` (channels, rows, columns); returns `model`.

    Its forward then takes (events, channels, rows and columns of `plan_tiles(...).tile(row, col)`), and every
    collective in it has its true adjoint: average all gradients over all ranks, as data-parallel replicas do, and they
    are those of one device. An input's gradient is `layout.tiles` times the one-device gradient.

    Args:
        model: any nn.Module of one device; its `state_dict` keys do not change.
        layout: the grid; the world must have its size.
        groups: the groups of this rank, from `make_groups(layout)`.
        image_size: the size of the whole image, which is fixed from here on.
        gather_at: "auto", "never", or the module whose input every rank gathers, to run whole from there on.
        norm_scope: batch statistics run over the "tiles" of one event or over "all" data ranks too.
        lean_norm: keep one map of every norm that only a ReLU reads, instead of two.
        overlap: compute a convolution's interior while its halo is under way.
        clock: set its step and micro-batch before each forward to make dropout masks repeatable; by default every
            training forward draws others.

    Raises:
        UserError: as in `plan_tiles`.
    """
    plan = plan_tiles(model, layout, image_size, gather_at, norm_scope, lean_norm)
    if clock is None:
        clock = Clock(micro_batch=groups.data_rank)
        model.register_forward_pre_hook(_tick(clock))
    return convert(model, plan, groups.tiles(norm_scope=norm_scope, overlap=overlap, clock=clock))


def _tick(clock: Clock) -> Any:
    def tick(module: nn.Module, args: Any) -> None:
        clock.step += module.training

    return tick
