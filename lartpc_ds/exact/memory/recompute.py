"""Recomputation: a block keeps its input only, and runs once more when its gradient is due.

torch's non-reentrant checkpoint does the work, and this module keeps a second run from doing anything twice or
otherwise. The second run starts from the state that the first run started from and leaves none behind
(`trace.module_state`), masks are drawn for the micro-batch of the first run, and every rank runs its blocks to the end,
so that the halos in them meet. Rejected: the reentrant form, with which ZeRO sees a parameter's gradient twice, and
DeepSpeed's own, which updates running statistics twice.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import tensors_of
from lartpc_ds.exact.grid.tiles import Alone, Clock, Tiles
from lartpc_ds.exact.memory.spare import Spare
from lartpc_ds.exact.trace.dry_run import dry_run, shadow_of
from lartpc_ds.exact.trace.imitation import TRACED_EVENTS, images_of
from lartpc_ds.exact.trace.module_state import ModuleState
from lartpc_ds.exact.trace.modules import Around, module_of, wrap
from lartpc_ds.models.build import blocks

__all__ = ["check_blocks", "recompute"]


def check_blocks(model: nn.Module, image: tuple[int, int, int], leave_out: Iterable[str] = ()) -> None:
    """Refuse before a run what `recompute` would refuse in its first step; `model` runs without data, unchanged.

    Args:
        model: a network with a list of blocks, in the mode that it will train in.
        image: the channels, rows and columns of the images.
        leave_out: names of modules, as in `recompute`.
    """
    shadow, alone = shadow_of(model), Tiles(1, 1, Alone(), Alone(), Alone())
    recompute(shadow, alone, map(shadow.get_submodule, leave_out))
    with torch.enable_grad(), dry_run(shadow):
        shadow(images_of(shadow, (TRACED_EVENTS, *image)))


def recompute(model: nn.Module, tiles: Tiles, leave_out: Iterable[nn.Module] = (), spare: Spare | None = None) -> None:
    """Let the blocks of `model` keep their inputs only; apply it after the model is converted to tiles.

    Args:
        model: a network with a list of blocks, see `models.build.blocks`.
        tiles: the tiles with which the model was converted.
        leave_out: a block that is or has one of these modules stays as it is.
        spare: micro-batches whose maps fit in memory keep them; with None no micro-batch does.

    Raises:
        UserError: the model has no list of blocks; later, or in `check_blocks`, a block changes its input in place,
            or state of its own that cannot be put back.
    """
    *sequence, last = blocks(model)
    left = {*leave_out, last[1]}  # what the last block keeps is needed at once
    chosen = {module: name for name, module in sequence if not left & {*module.modules()}}  # some blocks are used twice
    for module, name in chosen.items():
        wrap(name, module, _checkpointed(tiles, spare))


def _checkpointed(tiles: Tiles, spare: Spare | None) -> Around:
    def around(name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inputs = tensors_of(args, kwargs)
        # an input that is not kept anyway, but made again, may be larger than all that the block keeps
        kept = spare is not None and spare.fits
        if kept or not torch.is_grad_enabled() or any(map(tiles.remade.holds, inputs)):
            return forward(*args, **kwargs)
        versions = [tensor._version for tensor in inputs]
        state = ModuleState(module_of(forward))
        second_run = _SecondRun(name, state, tiles.clock)

        def run(*args: Any, **kwargs: Any) -> Any:
            with tiles.remade.suspended():
                return tree_map_only(Tensor, lambda y: _announced(y, args), forward(*args, **kwargs))

        with set_checkpoint_early_stop(False):
            result = checkpoint(
                run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), second_run), **kwargs
            )
        if [tensor._version for tensor in inputs] != versions:
            raise UserError(
                f"memory.recompute = 'block': block {name} changes its input in place, so that it cannot run once "
                "more; begin it with a function that does not (inplace=False), or set memory.recompute = 'none'"
            )
        if lost := state.settle():
            raise UserError(
                f"memory.recompute = 'block': block {name} changes its attribute {lost[0]} in place, so that its "
                "second run would not find the values of its first; make it a buffer (register_buffer), or set "
                "memory.recompute = 'none'"
            )
        return result

    return around


def _announced(y: Tensor, args: Any) -> Tensor:
    return y if any(y is x for x in args) else _Announced.apply(y)  # type: ignore[no-untyped-call]


class _Announced(torch.autograd.Function):
    """y -> y; its backward asks for something kept, so that the block runs again before that of its last module.

    ZeRO-3 gathers a module's weights for its backward and takes them away after any forward. The second run must come
    before the gathering, not between the two.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y.new_empty(0))
        if y._is_view():
            return y.view_as(y)
        ctx.mark_dirty(y)  # y stays the same tensor, because the next block could not work in place on a view made here
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return gradients[0]


class _SecondRun:
    """The second run of a block, which has the micro-batch and the state of the first."""

    def __init__(self, name: str, state: ModuleState, clock: Clock) -> None:
        self._name, self._state, self._clock = name, state, clock
        self._first = clock.step, clock.micro_batch
        self._now = self._first

    def __enter__(self) -> None:
        if lost := self._state.lost():
            raise UserError(
                f"memory.recompute = 'block': the buffer {lost[0]} of block {self._name} was changed between its run "
                "and its second run in the backward pass; change it within the block, or set memory.recompute = 'none'"
            )
        self._now = self._clock.step, self._clock.micro_batch
        self._clock.step, self._clock.micro_batch = self._first
        self._state.put_back()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.step, self._clock.micro_batch = self._now
        self._state.leave()
