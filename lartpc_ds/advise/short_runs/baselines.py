"""The training loops that a physicist would write with the documentation of PyTorch or DeepSpeed at hand.

Each trains what `ours` trains in the same run folder: the same weights at the start, events, precision, optimizer and
clipping. Only the learning rate of PyTorch's own loops stays constant. Ranks join and read events as ours do, because
neither is what is compared; of this project's engine, tiles and stages nothing is used. Rejected: examples of the
libraries themselves, which train other networks on other data.
"""

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lartpc_ds.config.ds_config import CompletedConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.models.build import blocks
from lartpc_ds.training import session
from lartpc_ds.training.engine import channels_last, start
from lartpc_ds.training.loader import training_steps
from lartpc_ds.training.prepare import Run, make_model
from lartpc_ds.training.sources import augmentation, reopen_source

__all__ = [
    "Lines",
    "autocast",
    "ddp",
    "deepspeed_pipe",
    "deepspeed_zero",
    "fsdp2",
    "hand_written",
    "timed_steps",
]

Lines = list[dict[str, Any]]
"""The metrics line of every step."""


def ddp(folder: RunFolder) -> Lines:
    """Train by a hand-written loop with torch's DistributedDataParallel."""

    def replicated(model: nn.Module, device: torch.device) -> nn.Module:
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    return _data_parallel(folder, replicated)


def fsdp2(folder: RunFolder) -> Lines:
    """Train by a hand-written loop with torch's fully_shard on every block and on the whole.

    The precision is autocast's: with bfloat16 weights of a MixedPrecisionPolicy, BatchNorm fails on a CPU.
    """

    def sharded(model: nn.Module, device: torch.device) -> nn.Module:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for _, block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    return _data_parallel(folder, sharded)


def _data_parallel(folder: RunFolder, wrapped: Callable[[nn.Module, torch.device], nn.Module]) -> Lines:
    run, ds = session.open_run(folder)
    groups, device = start(run.job.layout, run.config.launch.timeout_minutes)
    memory = PeakMemory(device)
    model = wrapped(_seeded_model(run).to(device), device)
    step = hand_written(model, ds, _batches(run, groups), device)
    return timed_steps(step, run.job.max_steps, memory)


def hand_written(
    model: nn.Module, ds: CompletedConfig, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Callable[[], float]:
    """A function that takes one step of AdamW, or of another of torch's optimizers, and returns its loss."""
    model.train()
    optimizer = _optimizer(model, ds)

    def step() -> float:
        images, labels = next(batches)
        with autocast(ds, device):
            scores = model(channels_last(images, device))
        loss = nn.functional.cross_entropy(scores.float(), labels.to(device))
        torch.autograd.backward(loss)
        if ds["gradient_clipping"]:
            nn.utils.clip_grad_norm_(model.parameters(), ds["gradient_clipping"])
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _optimizer(model: nn.Module, ds: CompletedConfig) -> torch.optim.Optimizer:
    optimizer: type[torch.optim.Optimizer] = getattr(torch.optim, ds["optimizer"]["type"])
    params = ds["optimizer"]["params"]
    return optimizer(
        model.parameters(),
        **{key: value for key, value in params.items() if key not in ("torch_adam", "adam_w_mode")},
    )


def deepspeed_zero(folder: RunFolder) -> Lines:
    """Train by DeepSpeed's documented loop, with the ZeRO stage of the folder's JSON."""
    run, ds = session.open_run(folder)
    groups, device = start(run.job.layout, run.config.launch.timeout_minutes)
    memory = PeakMemory(device)
    model = _seeded_model(run)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=dict(ds))
    engine.train()
    batches = _batches(run, groups)

    def step() -> float:
        images, labels = next(batches)
        scores = engine(channels_last(images, device))
        loss = nn.functional.cross_entropy(scores.float(), labels.to(device))
        engine.backward(loss)
        engine.step()
        return loss.item()

    return timed_steps(step, run.job.max_steps, memory)


class _Layer(nn.Module):
    """A block that takes and gives maps as (N, H, W, C).

    So channels-last maps are contiguous, as messages between stages must be, and nothing is copied.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x.permute(0, 3, 1, 2) if x.ndim == 4 else x)
        return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x


def deepspeed_pipe(folder: RunFolder) -> Lines:
    """Train by DeepSpeed's pipeline with one layer per block, cut into stages of nearly equal weights."""
    run, ds = session.open_run(folder)
    groups, device = start(run.job.layout, run.config.launch.timeout_minutes)
    memory = PeakMemory(device)
    module = PipelineModule(
        [_Layer(block) for _, block in blocks(_seeded_model(run))],
        num_stages=run.job.layout.pipe,
        loss_fn=lambda scores, labels: nn.functional.cross_entropy(scores.float(), labels),
        partition_method="parameters",
    )
    engine, *_ = deepspeed.initialize(model=module, model_parameters=list(module.parameters()), config=dict(ds))

    def ready(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return channels_last(batch[0], device).permute(0, 2, 3, 1), batch[1].to(device)

    batches = map(ready, _batches(run, groups))  # a generator's frame would hold the images through the whole step
    return timed_steps(lambda: float(engine.train_batch(batches)), run.job.max_steps, memory)


def timed_steps(step: Callable[[], float], number: int, memory: PeakMemory) -> Lines:
    """Take so many steps; the loss, the seconds and the peak of each."""
    lines: Lines = []
    for _ in range(number):
        started = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - started
        lines.append({"loss": loss, "step_seconds": seconds, "peak_bytes": memory.peak_bytes()})
        memory.reset()
    return lines


def _seeded_model(run: Run) -> nn.Module:
    torch.manual_seed(run.config.train.seed)
    return make_model(run.config, run.job.planes, len(run.job.classes))


def _batches(run: Run, groups: Groups) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that `ours` trains on this rank, which are read in the same way."""
    source = reopen_source(run.config, run.index, run.job.image_shape, run.job.task)
    events = EventDataset(source, run.index.positions("train"), augmentation=augmentation(run.config))
    return chain.from_iterable(training_steps(events, run.config, groups, 0, run.job.max_steps))


def autocast(ds: CompletedConfig, device: torch.device) -> torch.autocast:
    """The precision that the DeepSpeed JSON says."""
    asked = ds["torch_autocast"]
    return torch.autocast(device.type, getattr(torch, asked["dtype"]), enabled=asked["enabled"])
