"""Dynamic loss scaling for float16, the same for every ZeRO stage; and no step on a gradient that is not finite.

In float16 the gradients of a loss are multiplied by a scale so that small ones are not lost, and divided by it before
they are clipped; a step whose gradients overflow is skipped, and the scale is halved. Under ZeRO 1 to 3 with
torch_autocast, DeepSpeed 0.19.8 divides after it has clipped and never lowers the scale once its own check has found
an overflow (zero/stage_1_and_2.py and stage3.py: `_optimizer_step` alone calls torch's scaler, and a skipped step does
not reach it). It divides first where the scale is its own: so the scale is ours, handed over by `override_loss_scale`
before each step. Without ZeRO, torch's scaler decides by the gradients of one rank, where the stages of a pipeline must
decide together; and without float16 nothing there keeps the weights from a gradient that is not finite.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["LossScale", "attach"]

_FIRST, _LEAST = 2.0**16, 1.0
_CLEAN_STEPS = 2000  # with _FIRST the values of torch.amp.GradScaler


@dataclass(slots=True)
class LossScale:
    """What the loss is multiplied by; a power of two, so that scaling rounds nothing."""

    value: float
    clean_steps: int = 0
    """Since the scale changed last."""

    @classmethod
    def of(cls, precision: str) -> "LossScale":
        """At the start of a run in `fp32`, `bf16` or `fp16`."""
        return cls(_FIRST if precision == "fp16" else _LEAST)

    def update(self, *, overflowed: bool, dynamic: bool) -> bool:
        """Take note of one step; returns False if it has overflowed and no smaller scale could help."""
        if overflowed:
            helped = self.value > _LEAST
            self.value, self.clean_steps = max(_LEAST, self.value / 2), 0
            return helped
        self.clean_steps += 1
        if dynamic and self.clean_steps == _CLEAN_STEPS:
            self.value, self.clean_steps = self.value * 2, 0
        return True


class _WholeGradients:
    """Where DeepSpeed has torch's scaler for an optimizer that holds the gradients whole (no ZeRO)."""

    def __init__(self, scale: LossScale, group: dist.ProcessGroup) -> None:
        self._scale, self._group = scale, group
        self._unscaled = False

    def scale(self, loss: Tensor) -> Tensor:
        """For the backward pass."""
        return loss if self._scale.value == 1 else loss * self._scale.value

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """DeepSpeed calls this before it clips, if it clips."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for gradient in gradients:
            if self._scale.value != 1:
                gradient.div_(self._scale.value)
        bad = ~torch.nn.utils.get_total_norm(gradients).isfinite()
        flag = bad.to(torch.float32)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        # DeepSpeed looks for it after the step, as its own optimizers have it: it counts, and keeps the learning rate
        optimizer.overflow = bool(flag)  # type: ignore[attr-defined]
        self._unscaled = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Unless a gradient has overflowed on any stage."""
        if not self._unscaled:
            self.unscale_(optimizer)
        self._unscaled = False
        if not optimizer.overflow:  # type: ignore[attr-defined]
            optimizer.step()

    def update(self) -> None:
        """The engine does it, for every ZeRO stage alike."""


def attach(scale: LossScale, engine: Any, group: dist.ProcessGroup) -> None:
    """Make a DeepSpeed engine train with `scale`; again after every change of it.

    Args:
        scale: of this run.
        engine: as `deepspeed.initialize` returns it.
        group: the ranks that hold the other stages of the network.
    """
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        engine.torch_autocast_z0_gradscaler = _WholeGradients(scale, group)
        return
    optimizer.torch_autocast_gradscaler = None
    if engine.zero_optimization_stage() < 3 and not optimizer.compute_grad_norm:
        optimizer.check_grad_overflow = True  # else the norm tells
    if optimizer.loss_scale != scale.value:
        optimizer.override_loss_scale(scale.value)
