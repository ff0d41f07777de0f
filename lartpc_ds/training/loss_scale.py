"""Dynamic loss scaling for float16, the same for every ZeRO stage; no step is taken on a gradient that is not finite.

In float16 the gradients of a loss are multiplied by a scale, so that small ones are not lost, and are divided by it
before they are clipped. A step whose gradients overflow is skipped, and the scale is halved. Two faults of DeepSpeed
0.19.8 stand in the way. Under ZeRO 1 to 3 with torch_autocast it divides after it has clipped, and it never lowers the
scale once its own check has found an overflow (zero/stage_1_and_2.py and stage3.py: only `_optimizer_step` calls
torch's scaler, and a skipped step does not reach it). But it divides first where the scale is its own; so we keep the
scale, and hand it over by `override_loss_scale` before each step. Without ZeRO, torch's scaler decides by the gradients
of one rank, although the stages of a pipeline must decide together; and without float16 nothing keeps the weights from
a gradient that is not finite.
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
    """The factor of the loss. It is a power of two, so that scaling rounds nothing."""

    value: float
    clean_steps: int = 0
    """The number of steps without overflow since the scale changed last."""

    @classmethod
    def of(cls, precision: str) -> "LossScale":
        """The scale at the start of a run in `fp32`, `bf16` or `fp16`."""
        return cls(_FIRST if precision == "fp16" else _LEAST)

    def update(self, *, overflowed: bool, dynamic: bool) -> bool:
        """Take note of one step; return False if the step has overflowed and no smaller scale could help."""
        if overflowed:
            helped = self.value > _LEAST
            self.value, self.clean_steps = max(_LEAST, self.value / 2), 0
            return helped
        self.clean_steps += 1
        if dynamic and self.clean_steps == _CLEAN_STEPS:
            self.value, self.clean_steps = self.value * 2, 0
        return True


class _WholeGradients:
    """A stand-in for torch's scaler, which DeepSpeed uses with an optimizer that holds whole gradients (no ZeRO)."""

    def __init__(self, scale: LossScale, group: dist.ProcessGroup) -> None:
        self._scale, self._group = scale, group
        self._unscaled = False

    def scale(self, loss: Tensor) -> Tensor:
        """The loss that the backward pass starts from."""
        return loss if self._scale.value == 1 else loss * self._scale.value

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale; DeepSpeed calls this before it clips, if it clips."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for gradient in gradients:
            if self._scale.value != 1:
                gradient.div_(self._scale.value)
        bad = ~torch.nn.utils.get_total_norm(gradients).isfinite()
        flag = bad.to(torch.float32)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        # DeepSpeed reads this attribute of its own optimizers after the step, to count it and to keep the learning rate
        optimizer.overflow = bool(flag)  # type: ignore[attr-defined]
        self._unscaled = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step, unless a gradient has overflowed on any stage."""
        if not self._unscaled:
            self.unscale_(optimizer)
        self._unscaled = False
        if not optimizer.overflow:  # type: ignore[attr-defined]
            optimizer.step()

    def update(self) -> None:
        """Do nothing: the engine updates the scale, for every ZeRO stage alike."""


def attach(scale: LossScale, engine: Any, group: dist.ProcessGroup) -> None:
    """Make a DeepSpeed engine train with `scale`; call this again after every change of the scale.

    Args:
        scale: the loss scale of this run.
        engine: the engine that `deepspeed.initialize` has returned.
        group: the ranks that hold the other stages of the network.
    """
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        engine.torch_autocast_z0_gradscaler = _WholeGradients(scale, group)
        return
    optimizer.torch_autocast_gradscaler = None
    if engine.zero_optimization_stage() < 3 and not optimizer.compute_grad_norm:
        optimizer.check_grad_overflow = True  # otherwise the norm shows an overflow
    if optimizer.loss_scale != scale.value:
        optimizer.override_loss_scale(scale.value)
