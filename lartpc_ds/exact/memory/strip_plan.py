"""A strip plan says which rows of the image each strip needs, and until which block strips pay.

The front runs once on meta tensors of the whole image, with every row as a what-if (`grid.rows`), which gives the rows
of all strips; then every strip runs on meta tensors of its rows and must make the same calls with the same numbers. So
what a model computes from the size of its input cannot differ on a strip unseen. Rejected: trusting the run of the
whole image alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.grid.windows import Range
from lartpc_ds.exact.memory.front import Note
from lartpc_ds.exact.memory.saved import BlockBytes, block_bytes
from lartpc_ds.exact.memory.strips import Strips
from lartpc_ds.exact.trace.dry_run import dry_run, shadow_of
from lartpc_ds.exact.trace.imitation import TRACED_EVENTS, images_of
from lartpc_ds.exact.trace.module_state import ModuleState, both_modes, unchanged
from lartpc_ds.exact.trace.modules import announced
from lartpc_ds.layout import tile_bounds
from lartpc_ds.models.build import blocks

__all__ = ["Strip", "StripPlan", "plan_strips"]

Blocks = Sequence[tuple[str, nn.Module]]
Image = tuple[int, int, int]

_NEAR = 1.25
"""The shortest front within this factor of the best is taken; strips of a longer one have more rows in common."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A strip owns the rows `out` of the front's output, and needs `rows` of the image."""

    out: Range
    rows: Range


@dataclass(frozen=True, slots=True)
class StripPlan:
    """How a model's front runs in strips."""

    rows: int
    """The number of rows of the whole image."""
    front: tuple[str, ...]
    """The blocks that run in strips."""
    until: str
    """The first block that runs on the whole map."""
    dim: int
    """The dimension of the rows in the front's output."""
    strips: tuple[Strip, ...]

    @property
    def overlap(self) -> float:
        """The rows of the image that are read more than once, as a share of all."""
        return sum(stop - start for start, stop in (strip.rows for strip in self.strips)) / self.rows - 1


def plan_strips(model: nn.Module, strips: int, until: str, image: tuple[int, int, int]) -> StripPlan:
    """Plan and check a model for images of (channels, rows, columns), as its modes are and in evaluation.

    Args:
        model: any nn.Module of one device that has blocks (`models.build.blocks`); it is not changed.
        strips: the number of strips.
        until: the first block after the front, or "auto": the first for which little is alive at once.
        image: the size of the whole image.

    Raises:
        UserError: there is no such block, there are fewer rows than strips, or an operator of the front is not
            covered; the message names layer, line and what to change.
    """
    shadow = shadow_of(model)
    sequence = blocks(shadow)
    names = [name for name, _ in sequence]
    if until != "auto" and until not in names[1:]:
        raise UserError(
            f'memory.stream_until = {until!r}: the first block after the streamed front must be "auto" or one of '
            f"{', '.join(names[1:])}"
        )
    plan = None
    with both_modes(shadow) as modes:
        for _ in modes:
            plan = plan or _choose(shadow, sequence, strips, until, image)
            _check(shadow, sequence[: len(plan.front)], plan, image)
    assert plan is not None
    return plan


def _choose(shadow: nn.Module, sequence: Blocks, strips: int, until: str, image: Image) -> StripPlan:
    names = [name for name, _ in sequence]
    longest = len(names) - 1 if until == "auto" else names.index(until)
    run = _trace_front(shadow, sequence[:longest], image, None)
    if until != "auto":
        if run.error is not None:
            raise run.error
        return _cut(names[: longest + 1], run.trail[-1], strips)
    plans, error = [], run.error
    for count, rows in enumerate(run.trail, start=1):
        try:
            plans.append(_cut(names[: count + 1], rows, strips))
        except UserError as refusal:
            error = error or refusal
    if not plans:
        assert error is not None
        raise error
    with dry_run(shadow):
        sizes = block_bytes(sequence, images_of(shadow, (TRACED_EVENTS, *image)))
    peaks = _peaks(plans, sizes)
    return next(plan for plan, peak in zip(plans, peaks, strict=True) if peak <= _NEAR * min(peaks))


def _peaks(plans: Sequence[StripPlan], sizes: Sequence[BlockBytes]) -> list[float]:
    """Return the bytes alive at once for each plan.

    They are the front's output and its gradient, and the maps of the rest or, later, of the largest strip: the backward
    pass has freed the maps of the rest before the first strip runs again.
    """
    saved, peaks = [size.saved for size in sizes], []
    for plan in plans:
        count = len(plan.front)
        largest = max(stop - start for start, stop in (strip.rows for strip in plan.strips)) / plan.rows
        peaks.append(2 * sizes[count - 1].output + max(largest * sum(saved[:count]), sum(saved[count:])))
    return peaks


def _cut(names: Sequence[str], rows: Rows, strips: int) -> StripPlan:
    """Cut the output of a front, whose `rows` have every row of the image as a what-if, into strips of like size."""
    if rows.size < strips:
        raise UserError(
            f"memory.stream_strips = {strips}: the streamed front until {names[-1]} has {rows.size} rows of output, "
            "fewer than strips; take fewer strips, or an earlier memory.stream_until"
        )
    parts = itertools.pairwise(tile_bounds(rows.size, strips))
    return StripPlan(
        rows=len(rows.low) - 1,
        front=tuple(names[:-1]),
        until=names[-1],
        dim=rows.dim,
        strips=tuple(Strip(part, rows.needed(part)) for part in parts),
    )


@dataclass
class _FrontTrace:
    """The result of a run of the front on meta tensors."""

    notes: list[Note]
    trail: list[Rows]
    """The rows that each block gave, up to the first block that cannot run in strips."""
    error: UserError | None
    """The reason why that block cannot."""


def _trace_front(shadow: nn.Module, front: Blocks, image: Image, strip: Range | None) -> _FrontTrace:
    """Run the front on meta tensors of the rows `strip`, or of all rows with every row as a what-if."""
    strips = Strips()
    notes: list[Note] = []
    error: UserError | None = None
    strips.notes = notes
    channels, height, width = image
    rows = Rows.every(2, height) if strip is None else Rows.of(2, height, strip)
    states = [ModuleState(block) for _, block in front]
    with unchanged(shadow):
        try:
            with torch.no_grad(), dry_run(shadow, followed=True), announced(shadow, strips.around):
                strips.run(front, images_of(shadow, (TRACED_EVENTS, channels, rows.count, width)), rows)
        except UserError as refusal:
            error = refusal
        changes = [state.changes() for state in states]
    trail = strips.trail
    for count, ((name, _), changed) in enumerate(zip(front, changes, strict=True)):
        if changed and count < len(trail):
            trail = trail[:count]
            error = UserError(
                f"{name}: changes {', '.join(changed)} in every forward pass, and strips would do so once each; "
                "end the streamed front before it with memory.stream_until, or set memory.stream_strips = 1"
            )
    return _FrontTrace(notes, trail, error)


def _check(shadow: nn.Module, front: Blocks, plan: StripPlan, image: Image) -> None:
    """Refuse a front whose strips do not make the calls of the whole image.

    A strip must make them with the same numbers, on its part of the same maps. All of a few strips are checked, and a
    spread of many.
    """
    whole = _trace_front(shadow, front, image, None)
    last = len(plan.strips) - 1
    for strip in (plan.strips[at] for at in sorted({last * part // 8 for part in range(9)})):
        run = _trace_front(shadow, front, image, strip.rows)
        for error in (whole.error, run.error):
            if error is not None:
                raise error
        _compare(whole, run, strip)
        rows = run.trail[-1]
        if rows.dim != plan.dim or not rows.start <= strip.out[0] < strip.out[1] <= rows.stop:
            raise UserError(
                f"memory.stream_until: the blocks before {plan.until} need other rows in evaluation than in training, "
                "so they cannot run in strips; end the front earlier, or set memory.stream_strips = 1"
            )


def _compare(whole: _FrontTrace, run: _FrontTrace, strip: Strip) -> None:
    for on_all, on_strip in itertools.zip_longest(whole.notes, run.notes):
        if on_all != on_strip:
            layer, line, function, *_ = on_all or on_strip
            raise UserError(
                f"{layer} ({line}): {function} depends on the size of the image: {on_all and on_all[2:]} on all of "
                f"it, {on_strip and on_strip[2:]} on rows {strip.rows}; do not compute with the size"
            )
