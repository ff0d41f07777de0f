"""One rank's training engine, made of a model, a layout and a DeepSpeed JSON.

DeepSpeed does what it does well (ZeRO, clipping, precision, schedules). This module works around its faults on CPUs and
with convolutions, and hides them from the loop. `mpu` stays None: for DeepSpeed, the ranks of tiles are plain
data-parallel replicas (docs/design.md).
"""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.comm import comm
from deepspeed.runtime import compiler
from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param
from torch import nn

from lartpc_ds.config.ds_config import CompletedConfig, precision
from lartpc_ds.exact.grid.groups import Groups, make_groups
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.layout import Layout
from lartpc_ds.training.loss_scale import LossScale, attach
from lartpc_ds.training.losses import Loss, cross_entropy, mean
from lartpc_ds.training.step_clock import PhaseSeconds, StepClock, Timed

__all__ = ["Engine", "StepResult", "averaged_buffers", "channels_last", "finish", "inference", "start"]


def _compile_when_called() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A replacement of DeepSpeed's `compile()`, which decorates its Muon optimizer and so imports torch's compiler."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = cache(lambda: torch.compile(function))
        return wraps(function)(lambda *args, **options: compiled()(*args, **options))

    return decorate


def start(layout: Layout, timeout_minutes: int) -> tuple[Groups, torch.device]:
    """Join the job, and return this rank's groups and device; a collective fails after `timeout_minutes`."""
    compiler.compile = _compile_when_called
    # DeepSpeed would find out which of its operators can be built here, which compiles a C program, to ask for one of
    # them: a collective for inference only, whose building would ask every user for a C++ compiler
    vars(deepspeed.ops)["__compatible_ops__"] = {"deepspeed_shm_comm": False}
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator.set_device(local_rank)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    deepspeed.init_distributed(accelerator.communication_backend_name(), timeout=timeout, verbose=False)
    name = accelerator.device_name() if accelerator.device_name() == "cpu" else accelerator.device_name(local_rank)
    return make_groups(layout), torch.device(name)


def finish() -> None:
    """Leave the job together; without this about one CPU run in six dies in a destructor after its work is done."""
    dist.barrier()
    dist.destroy_process_group()


@dataclass(slots=True)
class StepResult:
    """What this rank counts in one optimizer step; the tiles of an event leave what they share to their first rank."""

    loss_sum: float = 0.0
    """The sum of the losses of all events."""
    correct: int = 0
    scored: int = 0
    """How many classes `correct` is out of: those of events, or those of pixels where each has a label."""
    events: int = 0
    sent_bytes: int = 0
    """Bytes that this rank has sent to other tiles."""
    wait_seconds: float = 0.0
    """Time that this rank has waited for other tiles."""
    seconds: PhaseSeconds = field(default_factory=PhaseSeconds)
    """What the step has taken, by its phases."""
    skipped: bool = False
    """Whether gradients were not finite, so that no weight has changed; the same on every rank."""
    hopeless: bool = False
    """Whether gradients would not be finite with any loss scale."""


class Engine:
    """A DeepSpeed engine around a plain module.

    `loss` says what is minimised; by default it is the cross entropy of events. `tiles` are the tiles that the model
    was converted with; the engine sets their clock before each forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        ds: CompletedConfig,
        groups: Groups,
        device: torch.device,
        loss: Loss | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        self.groups, self.device, self._tiles = groups, device, tiles or groups.tiles()
        self.loss = loss or Loss(cross_entropy())
        self._result = StepResult()
        self.micro_steps = int(ds["gradient_accumulation_steps"])
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, model_parameters=list(model.parameters()), config=dict(ds), dist_init_required=False
        )
        _clear_padding(self.deepspeed)
        self.clock = StepClock(device, self._tiles.traffic)
        self.clock.watch(comm.cdb)
        self.precision = precision(ds)
        self._loss_scale = LossScale.of(self.precision)
        attach(self._loss_scale, self.deepspeed, groups.pipe)
        scheduler = self.deepspeed.lr_scheduler
        if scheduler is not None:
            scheduler.step(0)  # DeepSpeed's schedulers start at iteration -1 with a learning rate of 0

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        module: nn.Module = self.deepspeed.module
        return module

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.deepspeed.get_lr()[0])

    @property
    def loss_scale(self) -> LossScale:
        """The loss scale of the next step."""
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, scale: LossScale) -> None:
        self._loss_scale = scale
        attach(scale, self.deepspeed, self.groups.pipe)

    @property
    def skipped_steps(self) -> int:
        """The number of steps of this run so far in which gradients overflowed and no weight changed."""
        return int(self.deepspeed.skipped_steps)

    def step(self, micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> StepResult:
        """Take one optimizer step over `gradient_accumulation_steps` micro-batches of (images NCHW, targets)."""
        self._result = result = StepResult()
        before = replace(self._tiles.traffic)
        self._tiles.clock.step = self.deepspeed.global_steps
        self.clock.start()
        self._micro_batches(Timed(iter(micro_batches), self.clock))
        result.seconds = self.clock.stop()
        result.skipped = bool(self.deepspeed.optimizer.overflow)
        helped = self._loss_scale.update(overflowed=result.skipped, dynamic=self.precision == "fp16")
        result.hopeless = result.skipped and not helped
        attach(self._loss_scale, self.deepspeed, self.groups.pipe)
        result.sent_bytes = self._tiles.traffic.sent_bytes - before.sent_bytes
        result.wait_seconds = self._tiles.traffic.wait_seconds - before.wait_seconds
        return result

    def _micro_batches(self, micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.deepspeed.train()
        for part, micro_batch in enumerate(micro_batches):
            self._tiles.clock.micro_batch = part * self.groups.layout.data + self.groups.data_rank
            images, targets = channels_last(micro_batch[0], self.device), micro_batch[1].to(self.device)
            del micro_batch  # the host's images would stay beside the device's through the whole step
            with self.clock.phase("forward"):
                mine = self.loss.mine(self.deepspeed(images))
                del images  # autograd has kept what it needs, in the precision that it needs
                total, weight = self.loss(mine, targets)
            with self.clock.phase("backward"):
                self.deepspeed.backward(mean(total, weight))
            with self.clock.phase("update"):
                self.deepspeed.step()
            self._count(mine.detach(), targets, total.detach(), weight.detach())

    def _count(self, mine: torch.Tensor, targets: torch.Tensor, total: torch.Tensor, weight: torch.Tensor) -> None:
        """Count the pixels of this rank's tile; what the tiles of an event share is counted by the first of them."""
        result = self._result
        if self.groups.leads or self.loss.task == "pixels":
            correct, scored = self.loss.correct(mine, targets)
            result.correct += correct
            result.scored += scored
        if self.groups.leads:
            events = len(targets)
            # the quotient is 1 for a plain mean over events, whose sum then keeps every bit
            result.loss_sum += float(total) * (events / float(weight) if float(weight) else 0.0)
            result.events += events

    def predict(self, images: torch.Tensor) -> torch.Tensor | None:
        """The outputs in evaluation mode; None where another rank has them."""
        self.deepspeed.eval()
        with torch.no_grad():
            outputs: torch.Tensor = self.deepspeed(channels_last(images, self.device))
        return outputs

    def monitor(self, values: Mapping[str, float], events: int) -> None:
        """Give values to the monitors that the JSON switches on; DeepSpeed itself reports the learning rate only."""
        if self.deepspeed.monitor.enabled:
            self.deepspeed.monitor.write_events([(f"Train/Samples/{name}", v, events) for name, v in values.items()])

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole fp32 weights, and buffers averaged over the data ranks, on the host; a collective of all ranks."""
        with (
            deepspeed.zero.GatheredParameters(list(self.module.parameters())),
            averaged_buffers(self.module, self.groups),
        ):
            return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}


def _clear_padding(engine: Any) -> None:
    """Zero what ZeRO-3's partitions hold beyond the ends of the weights.

    DeepSpeed allocates this padding and never writes it. So a checkpoint would keep whatever lay in that memory, and
    would differ from the checkpoint of the same run done again.
    """
    if engine.zero_optimization_stage() < 3:
        return
    for parameter in engine.module.parameters():
        partition = parameter.ds_tensor
        rank = dist.get_rank(parameter.ds_process_group)
        padding = slice(max(0, parameter.ds_numel - rank * partition.numel()), None)
        partition[padding] = 0
        if parameter.requires_grad:
            kept = safe_get_local_fp32_param(parameter).clone()
            kept[padding] = 0
            safe_set_local_fp32_param(parameter, kept)


def inference(model: nn.Module, ds: CompletedConfig, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from images to the outputs of a plain module, in the precision that the JSON trains in."""
    model.eval()
    autocast = ds["torch_autocast"]

    def forward(images: torch.Tensor) -> torch.Tensor:
        dtype = getattr(torch, autocast["dtype"])
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=autocast["enabled"]):
            outputs: torch.Tensor = model(channels_last(images, device))
        return outputs

    return forward


@contextmanager
def averaged_buffers(module: nn.Module, groups: Groups) -> Iterator[None]:
    """Let floating buffers (BatchNorm's running statistics) hold their mean over the data ranks inside the `with`.

    Each rank has seen other events and so has other statistics, but an answer must not depend on the rank that gives
    it. Afterwards each rank has its own statistics back, so that an evaluation does not change the training.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        dist.all_reduce(buffer, group=groups.data)
        buffer.div_(groups.layout.data)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)


def channels_last(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the device, in the layout in which convolutions are fast; sparse images stay sparse."""
    if images.is_sparse:
        return images.to(device)
    # activations only: DeepSpeed's start-up broadcast breaks on channels-last parameters
    return images.to(device).contiguous(memory_format=torch.channels_last)
