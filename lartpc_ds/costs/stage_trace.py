"""A trace runs one rank of every pipeline stage on tensors without memory, as its engine runs it.

The order of passes is 1F1B's: as many forward passes as micro-batches are kept, a backward pass, and one more of each
where there are more micro-batches. A model that is not cut is the only stage of its pipeline. What DeepSpeed's pipeline
engine keeps beside (received maps, sent ones until their gradient comes back) is kept here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import register_multi_grad_hook
from torch.nn import functional as F

from lartpc_ds.config.ds_config import precision
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.meter import Meter, Peak, traced_autocast
from lartpc_ds.costs.peers import ImaginedPeers
from lartpc_ds.costs.problem import Candidate, Problem
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.patches import Bits
from lartpc_ds.exact.grid.tiles import Alone, Group, Tiles
from lartpc_ds.exact.memory.strip_plan import StripPlan
from lartpc_ds.exact.spatialize import TilePlan
from lartpc_ds.exact.trace.dry_run import ReadableConstants, locating_errors
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.models.build import blocks

__all__ = ["Partition", "StageTrace", "trace_stages"]


@dataclass(frozen=True)
class Partition:
    """How the network is divided into tiles, strips and pipeline stages."""

    tiles: TilePlan
    strips: StripPlan | None
    bounds: Bounds
    """The blocks at which pipeline stages begin and end; () for a network that is not cut."""


@dataclass
class StageTrace:
    """What one rank of a stage does with a micro-batch, and the memory that it has at its peak."""

    parameters: int
    """How many parameters the stage trains."""
    peak: Peak = field(default_factory=Peak)
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    exposed_seconds: float = 0.0
    """How long the rank waits for other tiles, in both passes together."""
    update_seconds: float = 0.0
    """How long an optimizer takes that has all of the stage's weights to itself."""
    output_bytes: int = 0
    """What the rank sends to the next stage."""


def trace_stages(
    problem: Problem,
    candidate: Candidate,
    hardware: Hardware,
    ranks_per_node: int,
    partition: Partition,
    pixels: Bits | None = None,
) -> list[StageTrace]:
    """Trace the fullest tile of each stage, in order.

    `pixels` are the lit ones of the event that all micro-batches consist of, where only what is lit is computed.
    """
    layout = candidate.layout
    number = precision(problem.ds)
    row, col = _fullest(partition.tiles, layout)
    rates = hardware.shared_by(min(ranks_per_node, layout.world_size))
    traces = []
    with FakeTensorMode(allow_non_fake_inputs=True), ReadableConstants():
        model = problem.make_model().train()
        peers = ImaginedPeers(layout.tiles, row * layout.cols + col, hardware, ranks_per_node, Meter(rates))
        norm, whole_norm = _norm_groups(problem, layout, peers)
        tiles = Tiles(layout.rows, layout.cols, peers, norm, whole_norm, candidate.overlap)
        lit = problem.lit.plan if problem.lit is not None and pixels is not None else None
        apply(model, candidate.memory, partition.tiles, tiles, partition.strips, lit)
        if hardware.device == "cuda" and number != "fp32":
            _norms_in_float32(model)
        sequence = [block for _, block in blocks(model)] if partition.bounds else [model]
        bounds = partition.bounds or (0, 1)
        (top, bottom), (left, right) = partition.tiles.tile(row, col)
        shape: Any = (candidate.batch, problem.image[0], bottom - top, right - left)
        received: tuple[Sequence[int], torch.dtype] = shape, torch.float32
        events = None if pixels is None else np.repeat(pixels, candidate.batch, 0)
        for stage, (start, stop) in enumerate(pairwise(bounds)):
            meter = Meter(rates)
            peers.meter = meter
            run = _StageRun(sequence[start:stop], meter, peers, received, number, stage, len(bounds) - 1, events)
            with locating_errors(model):
                traces.append(run.step(candidate.accumulate, problem.ds))
            received = run.sent
    return traces


def _fullest(plan: TilePlan, layout: Layout) -> tuple[int, int]:
    """The place of the tile that owns most pixels and, of several such, has most neighbours."""

    def fullness(place: tuple[int, int]) -> tuple[int, int]:
        (top, bottom), (left, right) = plan.tile(*place)
        inner = sum(0 < at < size - 1 for at, size in zip(place, (layout.rows, layout.cols), strict=True))
        return (bottom - top) * (right - left), inner

    return max(((row, col) for row in range(layout.rows) for col in range(layout.cols)), key=fullness)


def _norm_groups(problem: Problem, layout: Layout, peers: ImaginedPeers) -> tuple[Group, Group]:
    if problem.config.model.norm_scope == "tiles":
        return peers, Alone()
    return peers.of_size(layout.tiles * layout.data), peers.of_size(layout.data)


def _norms_in_float32(model: nn.Module) -> None:
    """Run these norms in float32, as CUDA's autocast does; the CPU's, under which we trace, does not."""

    def cast(module: nn.Module, args: Any) -> Any:
        return (args[0].float(), *args[1:])

    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(cast)


class _StageRun:
    """Runs the passes of one stage; micro-batches are in flight until their backward pass is done."""

    def __init__(
        self,
        sequence: Sequence[nn.Module],
        meter: Meter,
        peers: ImaginedPeers,
        received: tuple[Sequence[int], torch.dtype],
        precision: str,
        stage: int,
        stages: int,
        pixels: Bits | None,
    ) -> None:
        self._modules = nn.ModuleList(sequence)
        self._meter, self._peers, self._received, self._precision = meter, peers, received, precision
        self._stage, self._stages, self._pixels = stage, stages, pixels
        self._in_flight: list[tuple[Tensor | None, Tensor]] = []
        self._message: Tensor | None = None
        self._gradient: Tensor | None = None
        self.sent = received

    def step(self, micro_batches: int, ds: Any) -> StageTrace:
        """Run every pass of a step that differs from others, and then the optimizer."""
        trained = [value for value in self._modules.parameters() if value.requires_grad]
        result = StageTrace(
            parameters=sum(value.numel() for value in trained),
        )
        copies = min(self._stages - self._stage, micro_batches)
        self._meter.hold(self._modules)
        with self._meter:
            for _ in range(copies):
                self._forward()
            result.forward_seconds = self._meter.seconds / copies
            started = self._meter.seconds
            self._backward()
            result.backward_seconds = self._meter.seconds - started
            result.exposed_seconds = self._peers.take_exposed_seconds() * 2 / (copies + 1)
            if micro_batches > copies:
                self._forward()
                self._backward()
        result.peak = self._meter.peak
        result.update_seconds = self._update(trained, ds)
        result.output_bytes = _nbytes(self.sent) if self._stage < self._stages - 1 else 0
        return result

    def _forward(self) -> None:
        shape, dtype = self._received
        first, last = self._stage == 0, self._stage == self._stages - 1
        kept = None
        pixels = () if self._pixels is None else (self._pixels,)
        if pixels:
            x = torch.empty((), dtype=dtype).expand(shape)  # a run has lists of lit pixels, which are small
        elif self._stages == 1:
            x = _map(shape, dtype)
        elif first:
            kept = _map(shape, dtype)
            x = kept.clone()
        else:
            self._message = _map(shape, dtype) if self._message is None else self._message
            kept = self._message.clone().requires_grad_(dtype.is_floating_point)
            x = kept.clone()
            if x.requires_grad:
                # with this hook autograd keeps the gradient of x beside the one that is sent back, and both count
                register_multi_grad_hook((x,), lambda gradients: None)
        with traced_autocast(self._precision):
            for module in self._modules:
                x = module(x, *pixels)
        if not last:
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()
        self.sent = tuple(x.shape), x.dtype
        self._in_flight.append((kept, _loss(x) if last else x))

    def _backward(self) -> None:
        kept, y = self._in_flight.pop(0)
        if self._stage == self._stages - 1:
            torch.autograd.backward(y)
        else:
            self._gradient = torch.empty_like(y) if self._gradient is None else self._gradient
            torch.autograd.backward(y, self._gradient)
        del kept

    def _update(self, trained: Sequence[nn.Parameter], ds: Any) -> float:
        """Clip gradients and update all weights of the stage; the seconds that this takes."""
        kind = ds["optimizer"]["type"]
        kind = "AdamW" if kind in ("Adam", "AdamW") else kind
        for value in trained:
            value.grad = torch.zeros_like(value)
        optimizer = getattr(torch.optim, kind)(trained, lr=1e-3)
        optimizer.step()  # has no states before
        meter = Meter(self._meter.rates)
        with meter:
            nn.utils.clip_grad_norm_(trained, 1.0, foreach=False)
            optimizer.step()
        for value in trained:
            value.grad = None
        return meter.seconds


def _map(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    channels_last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, memory_format=channels_last)


def _nbytes(message: tuple[Sequence[int], torch.dtype]) -> int:
    return int(torch.Size(message[0]).numel() * message[1].itemsize)


def _loss(scores: Tensor) -> Tensor:
    targets = torch.zeros((scores.shape[0], *scores.shape[2:]), dtype=torch.long)
    return F.cross_entropy(scores.float(), targets)
