"""A lit plan says which blocks of a network can run on patches, and how far charge reaches in each.

The network runs on meta tensors of patches of two sizes, and of the whole image. All runs must make the same calls with
the same numbers, so what a model computes from the size of its input, or from the number of its patches, cannot go
wrong unseen: patches alone would not show that a model pads an image of 333 rows to 352. The first
block that has no proven form ends the lit part; if the user has named a later one, that is an error. Which of the
covered blocks run lit is decided for each micro-batch by what its events have lit (`until_of`), because both ways give
the same numbers. Rejected: one choice for a run, which is wrong for its brightest events or for all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lartpc_ds.data.lit_shares import AUTO_PIXELS, Cells, Cut, Reach
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import numbers_of, tensors_of
from lartpc_ds.exact.grid.patches import Axis, Bits, Patches
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.front import UNNOTED, Note
from lartpc_ds.exact.memory.lit import Lit, Placed
from lartpc_ds.exact.memory.saved import block_bytes
from lartpc_ds.exact.ops.operator import PATCHES
from lartpc_ds.exact.trace.dry_run import dry_run, shadow_of
from lartpc_ds.exact.trace.following import Following, shared_numbers
from lartpc_ds.exact.trace.frames import where
from lartpc_ds.exact.trace.imitation import TRACED_EVENTS, images_of
from lartpc_ds.exact.trace.module_state import both_modes, unchanged
from lartpc_ds.exact.trace.modules import announced
from lartpc_ds.models.build import blocks

__all__ = ["LitBlock", "LitPlan", "plan_lit"]

NEVER = "never"
"""The `memory.lit_until` of a network that runs lit to its end."""

_ANY_STRIDE = 322_560
"""This number of pixels is divided by every product of strides that a network is likely to have."""
_FLOPS_PER_BYTE = 40
"""What a processor computes while it moves a byte; it turns both into one cost."""
_DEAR = 1.35
"""What a pixel costs on patches, relative to a pixel of a whole map: patches are read with their surroundings."""

Image = tuple[int, int, int]
Blocks = Sequence[tuple[str, nn.Module]]


@dataclass(frozen=True, slots=True)
class LitBlock:
    """A block of the network: how far charge reaches in its output, and what the block costs on a whole event."""

    name: str
    reach: Reach | None
    """None for a block that cannot run on patches, or that gives no map."""
    cost: float
    """The floating-point operations of the block, and those in whose time its maps are moved."""
    saved_bytes: int
    """The bytes of maps that are kept for the backward pass."""


@dataclass(frozen=True)
class LitPlan:
    """How a model runs on what is lit."""

    rows: Axis
    cols: Axis
    until: str
    """The first block that runs on whole maps: its name, "never", or "auto"."""
    blocks: tuple[LitBlock, ...]
    """All blocks of the model."""
    covered: int
    """The number of blocks, from the first on, that can run on patches."""

    def shares(self, lit: Bits) -> list[float]:
        """Return the share of patches that charge reaches, at each covered block's output that is a map.

        `lit` has the lit pixels of the images, (events, rows, columns).
        """
        return self.cut.shares(Cells.of_bits(lit))[1:]

    @property
    def cut(self) -> Cut:
        """How images are cut, and how far a lit pixel lights the output of each block of `maps`."""
        reaches = (block.reach for block in self.blocks[: self.covered])
        return Cut(
            (self.rows.size, self.cols.size),
            (self.rows.patch, self.cols.patch),
            tuple(reach for reach in reaches if reach is not None),
        )

    @property
    def maps(self) -> tuple[str, ...]:
        """The covered blocks whose output is a map, by name."""
        return tuple(block.name for block in self.blocks[: self.covered] if block.reach is not None)

    def cost(self, shares: Sequence[float]) -> float:
        """Return the predicted cost of a step on events with these `shares`; a step on whole maps costs 1."""
        gained = self._gained(shares)[self._first_whole(shares)]
        return 1 + gained / sum(block.cost for block in self.blocks)

    def until_of(self, lit: Bits) -> str | None:
        """Return the first block that runs on whole maps for these events; None if there is none."""
        if self.until != "auto":
            return None if self.until == NEVER else self.until
        first = self._first_whole(self.shares(lit))
        return self.blocks[first].name if first < len(self.blocks) else None

    def kept_bytes(self, shares: Sequence[float]) -> float:
        """Return what is kept of an event with these `shares` for the backward pass, if its maps are float32."""
        first = self._first_whole(shares)
        return sum(block.saved_bytes * self._share(shares, number, first) for number, block in enumerate(self.blocks))

    def _first_whole(self, shares: Sequence[float]) -> int:
        """Return the number of the first block that runs on whole maps."""
        if self.until == "auto":
            return int(np.argmin(self._gained(shares)))  # where that is least dear
        names = [block.name for block in self.blocks]
        return len(names) if self.until == NEVER else names.index(self.until)

    def _share(self, shares: Sequence[float], number: int, first_whole: int) -> float:
        """Return the share of a block's patches that charge reaches, as far as it runs on patches."""
        return shares[min(number, len(shares) - 1)] if number < first_whole and shares else 1.0

    def _gained(self, shares: Sequence[float]) -> list[float]:
        """Return what the cost of a step on whole maps gains if its first 0, 1, ... covered blocks run on patches."""
        gained = [0.0]
        for number, block in enumerate(self.blocks[: self.covered]):
            share = self._share(shares, number, self.covered)
            gained.append(gained[-1] + (_DEAR * share - 1) * block.cost)
        return gained


def plan_lit(model: nn.Module, pixels: int | Literal["auto"], until: str, image: Image) -> LitPlan:
    """Plan and check a model for images of (channels, rows, columns), as its modes are and in evaluation.

    Args:
        model: any nn.Module of one device that has blocks (`models.build.blocks`); it is not changed.
        pixels: the side of a patch of the image, on the axis with the smaller stride of the first block; on the other
            axis it is larger by the ratio of the strides; "auto" is `AUTO_PIXELS`.
        until: the first block that runs on whole maps, "never", or "auto": the one that is cheapest for each event.
        image: the size of the whole image.

    Raises:
        UserError: there is no such block, the patches are too small for the network's strides, or a block before
            `until` has no proven form on patches; the message names layer, line and what to change.
    """
    shadow = shadow_of(model)
    sequence = blocks(shadow)
    names = [name for name, _ in sequence]
    if until not in ("auto", NEVER, *names[1:]):
        raise UserError(
            f'memory.lit_until = {until!r}: it must be "auto", "{NEVER}", or the first block that runs on whole maps, '
            f"one of {', '.join(names[1:])}"
        )
    wanted = {"auto": 0, NEVER: len(names)}.get(until) if until in ("auto", NEVER) else names.index(until)
    assert wanted is not None
    covered, trace = len(names), None
    with both_modes(shadow) as modes:
        for _ in modes:
            any_stride = _trace(shadow, sequence, image, (_ANY_STRIDE, _ANY_STRIDE))
            patch = _patch(any_stride, AUTO_PIXELS if pixels == "auto" else pixels)
            found = _trace(shadow, sequence, image, patch)
            error = _different(any_stride.notes, found) or found.error
            error = _different(_notes_of_whole(shadow, sequence, image), found) or error
            count = found.blocks
            if error is not None and count < max(wanted, 1):
                raise error
            covered, trace = min(covered, count), trace or found
    assert trace is not None
    return LitPlan(Axis(image[1], patch[0]), Axis(image[2], patch[1]), until, _costs(shadow, image, trace), covered)


@dataclass
class _Trace:
    """The result of a run on meta tensors of patches."""

    patch: tuple[int, int]
    maps: list[Patches | None]
    """What each block gave, as far as blocks are covered; None is a whole tensor."""
    notes: list[list[Note]]
    """The calls of each block, with the shapes that their tensors have on the whole image."""
    error: UserError | None = None
    """The reason why the next block is not covered."""

    @property
    def blocks(self) -> int:
        return len(self.maps)


def _trace(shadow: nn.Module, sequence: Blocks, image: Image, patch: tuple[int, int]) -> _Trace:
    """Run the blocks on the patches of events of which one pixel in the middle is lit."""
    channels, height, width = image
    lit = np.zeros((TRACED_EVENTS, height, width), np.bool_)
    lit[0, height // 2, width // 2] = True
    patches = Patches(lit, Axis(height, patch[0]), Axis(width, patch[1]))
    placed: Placed | None = Placed(patches)
    follower, trace = Lit(Tiles(1, 1, Alone(), Alone(), Alone())), _Trace(patch, [], [])
    x = images_of(shadow, (len(patches), channels, *patch)).to(memory_format=torch.channels_last)
    with unchanged(shadow), torch.no_grad(), dry_run(shadow, followed=True), announced(shadow, follower.around):
        for _, block in sequence:
            follower.notes = []
            try:
                if placed is None:
                    x = block(x)
                else:
                    x, placed = follower.run_block(block, x, placed)
            except UserError as refusal:
                trace.error = refusal
                break
            trace.notes.append([_on_whole(note) for note in follower.notes])
            trace.maps.append(None if placed is None else placed.patches)
    return trace


def _patch(trace: _Trace, pixels: int) -> tuple[int, int]:
    """Return the rows and columns of a patch; where a block's strides differ, its output has square patches."""
    if not trace.maps or trace.maps[0] is None:
        return pixels, pixels
    rows, cols = trace.maps[0].shape
    return pixels * max(rows, cols) // rows, pixels * max(rows, cols) // cols


def _on_whole(note: Note) -> Note:
    """Return the note of the same call on whole maps."""
    *call, sizes = note
    shapes = []
    for dims, *size in sizes:
        if dims is not None:
            pixels, *others = size
            whole, rest = dict(zip(dims, (TRACED_EVENTS, *pixels), strict=True)), iter(others)
            size = [whole[dim] if dim in whole else next(rest) for dim in range(len(dims) + len(others))]
        shapes.append(tuple(size))
    return (*call, tuple(shapes))  # type: ignore[return-value]


class _Whole(Following):
    """Notes the calls of a run on whole maps as `Front` does."""

    words = PATCHES

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] = []

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._name not in UNNOTED:
            numbers = shared_numbers(self._name, None, numbers_of(args, kwargs))
            shapes = tuple(tuple(tensor.shape) for tensor in tensors_of(args, kwargs))
            self.notes.append((self.owner, where(), self._name, numbers, shapes))
        return func(*args, **kwargs)


def _notes_of_whole(shadow: nn.Module, sequence: Blocks, image: Image) -> list[list[Note]]:
    """Run the blocks on whole images and return their calls."""
    follower, notes = _Whole(), []
    x = images_of(shadow, (TRACED_EVENTS, *image))
    with unchanged(shadow), torch.no_grad(), dry_run(shadow, followed=True), announced(shadow, follower.around):
        for _, block in sequence:
            follower.notes = []
            with follower:
                x = block(x)
            notes.append(follower.notes)
    return notes


def _different(notes: list[list[Note]], found: _Trace) -> UserError | None:
    """Cut a trace before the first block whose calls are others in another run, and say which call it is."""
    for number, (first, second) in enumerate(zip(notes, found.notes[: found.blocks], strict=False)):
        first, second = ([note for note in block if note[2] != "the block"] for block in (first, second))
        if first != second:
            del found.maps[number:]
            pairs = zip([*first, None], [*second, None], strict=False)
            layer, line, function, *_ = next(a or b for a, b in pairs if a != b)  # type: ignore[misc]
            return UserError(
                f"{layer} ({line}): {function} depends on the size of the map or on the number of its patches; do not "
                "compute with the size, end the lit part before it with memory.lit_until, or set memory.lit_block = 0"
            )
    return None


def _costs(shadow: nn.Module, image: Image, trace: _Trace) -> tuple[LitBlock, ...]:
    sequence, costs = blocks(shadow), []
    x = images_of(shadow, (TRACED_EVENTS, *image))  # a batch norm refuses one event of one pixel
    with unchanged(shadow), dry_run(shadow):
        sizes = block_bytes(sequence, x)
    for number, (name, block) in enumerate(sequence):
        with unchanged(shadow), torch.no_grad(), dry_run(shadow), FlopCounterMode(display=False) as counter:
            x = block(x)
        patches = trace.maps[number] if number < trace.blocks else None
        reach = None if patches is None else _reach(patches, image, trace.patch)
        cost = counter.get_total_flops() + _FLOPS_PER_BYTE * (sizes[number].saved + sizes[number].output)
        costs.append(LitBlock(name, reach, cost / TRACED_EVENTS, sizes[number].saved // TRACED_EVENTS))
    return tuple(costs)


def _reach(patches: Patches, image: Image, patch: tuple[int, int]) -> Reach:
    """Return how far the pixel in the middle of the image lights a map, in pixels of the image.

    A map of small windows and large strides may not read it at all.
    """
    ends: list[int] = []
    for axis, (size, side, own) in enumerate(zip(image[1:], patch, patches.shape, strict=True)):
        lit = np.flatnonzero(patches.lit[0].any(1 - axis))
        first, last = (int(lit[0]), int(lit[-1])) if len(lit) else (size // 2 * own // side,) * 2
        ends += [size // 2 - first * side // own, -(-(last + 1) * side // own) - 1 - size // 2]
    return Reach(*(max(end, 0) for end in ends))
