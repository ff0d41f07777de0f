"""Strips are tiles in time: one device runs the front of a network strip after strip of rows, exactly.

The maps of the first blocks are nearly all of a step's memory. Their output rows are cut into strips; each strip runs
alone, from the rows of the image that it needs, and leaves its part of the front's small output. Nothing else is kept:
the backward pass runs each strip once more, the last one first, so the maps of one strip at a time are alive. The
network is not changed, and its gradients are those of a plain run: a strip computes the rows that it owns with all rows
that they depend on, and rows outside the image are padding to every layer anew.

Each strip is a `torch.utils.checkpoint` of a view of the image. Rejected: an autograd function that calls
`autograd.grad` for each strip, and reentrant checkpoints, which both finish a parameter's gradient once per strip,
while ZeRO's hooks count on once per backward pass.
"""

import functools
from collections.abc import Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.memory.strip_plan import Strip, StripPlan
from lartpc_ds.exact.memory.strips import Strips
from lartpc_ds.exact.trace.modules import wrap
from lartpc_ds.models.build import blocks

__all__ = ["stream"]


def stream(model: nn.Module, plan: StripPlan) -> nn.Module:
    """Let `model` run its front in the strips of `plan` (from `plan_strips`); changes and returns `model`.

    Apply it before `spatialize.convert` and before recomputation, which may leave out the blocks `plan.front`.
    """
    strips = Strips()
    for name, block in blocks(model)[: len(plan.front)]:
        wrap(name, block, strips.around)

    def streamed(self: nn.Module, images: Tensor) -> Tensor:
        if images.shape[2] != plan.rows:
            raise ValueError(
                f"images: they must have {plan.rows} rows, as the strips do; they are {tuple(images.shape)}"
            )
        sequence = blocks(self)
        front, rest = sequence[: len(plan.front)], sequence[len(plan.front) :]
        parts = []
        for strip in plan.strips:
            run = functools.partial(_own_rows, strips, front, plan, strip)
            parts.append(_run(run, images[:, :, strip.rows[0] : strip.rows[1]]))
        x = torch.cat(parts, plan.dim)
        del parts
        for _, block in rest:
            x = block(x)
        return x

    model.forward = MethodType(streamed, model)
    return model


def _own_rows(
    strips: Strips, front: Sequence[tuple[str, nn.Module]], plan: StripPlan, strip: Strip, view: Tensor
) -> Tensor:
    """Return the rows of the front's output that the strip owns."""
    x, rows = strips.run(front, view, Rows.of(2, plan.rows, strip.rows))
    start, stop = strip.out
    assert rows.start <= start < stop <= rows.stop, (strip, rows)
    return x.narrow(plan.dim, start - rows.start, stop - start)


def _run(run: "functools.partial[Tensor]", view: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return run(view)
    # stopping early would leave modules before their forward hooks are called, with ZeRO-3's parameters gathered; and
    # there is no random state to restore, because nothing random runs on strips
    with set_checkpoint_early_stop(False):
        part: Tensor = checkpoint(run, view, use_reentrant=False, preserve_rng_state=False)
    return part
