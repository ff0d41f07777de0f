"""One device against a grid of tiles: the same model, image and loss, and every number that must agree.

The loss weighs each output by a fixed random number, so that no gradient is special. `on_threads` plays the ranks in
threads of this process, with the production code and a group of queues: a sweep of thousands of cases takes seconds.
"""

import copy
import functools
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lartpc_ds.exact.grid.tiles import Clock, Group, Tiles, Wait
from lartpc_ds.exact.kernels.collectives import own_part, sum_over_ranks
from lartpc_ds.exact.memory.recompute import recompute
from lartpc_ds.exact.spatialize import TilePlan, convert, plan_tiles
from lartpc_ds.layout import Layout

__all__ = ["Numbers", "assert_same", "assert_tiles_agree", "image", "on_threads", "on_tile", "whole"]

TOLERANCE, BUFFER_TOLERANCE = 1e-10, 1e-12


@dataclass
class Numbers:
    """Everything that a step leaves: output, input gradient, weight gradients, buffers."""

    output: Tensor
    input_gradient: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def image(shape: Sequence[int], seed: int = 0) -> Tensor:
    """A dense random image in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _weights(output: Tensor) -> Tensor:
    return image(output.shape, seed=99)


def whole(model: nn.Module, x: Tensor) -> Numbers:
    """One device; the model is left as it was."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    y = model(x)
    (y * _weights(y)).sum().backward()
    assert x.grad is not None
    return Numbers(y.detach(), x.grad, _gradients(model), _buffers(model))


def on_tile(
    model: nn.Module, x: Tensor, plan: TilePlan, tiles: Tiles, output_shape: torch.Size, recomputed: bool = False
) -> Numbers:
    """One rank: its tile of `x`, its part of the output, gradients before any averaging."""
    model = convert(copy.deepcopy(model), plan, tiles)
    if recomputed:
        recompute(model, tiles, map(model.get_submodule, plan.remade_at))
    (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)
    mine = x[:, :, top:bottom, left:right].clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(mine)
    weights = image(output_shape, seed=99)
    if plan.output is None:
        loss = (y * weights).sum()
    else:
        loss = sum_over_ranks((y * _part(weights, plan, tiles)).sum(), tiles.group)
    loss.backward()
    assert mine.grad is not None
    return Numbers(y.detach(), mine.grad, _gradients(model), _buffers(model))


def _part(output: Tensor, plan: TilePlan, tiles: Tiles) -> Tensor:
    assert plan.output is not None
    return own_part(output, plan.output, tiles.row, tiles.col, output.ndim)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: gradient.clone() for name, gradient in found.items()}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(reference: Numbers, ranks: Sequence[Numbers], plan: TilePlan, layout: Layout) -> None:
    """Outputs, input gradient over T, mean of weight gradients: 1e-10 of the largest; buffers 1e-12."""
    for rank, numbers in enumerate(ranks):
        at = layout.coordinates(rank)
        (top, bottom), (left, right) = plan.tile(at.row, at.col)
        expected = reference.output
        if plan.output is not None:
            expected = own_part(expected, plan.output, at.row, at.col, expected.ndim)
        _close(numbers.output, expected, reference.output, f"output of rank {rank}")
        gradient = reference.input_gradient[:, :, top:bottom, left:right]
        _close(numbers.input_gradient / layout.tiles, gradient, reference.input_gradient, f"input gradient, {rank}")
        assert numbers.gradients.keys() == reference.gradients.keys()
        for name, value in reference.buffers.items():
            _close(numbers.buffers[name].double(), value.double(), value.double(), name, BUFFER_TOLERANCE)
    largest = max((_largest(gradient) for gradient in reference.gradients.values()), default=0.0)
    for name, expected in reference.gradients.items():
        mean = torch.stack([numbers.gradients[name] for numbers in ranks]).mean(0)
        # a bias before a norm has a gradient of nothing but rounding
        _close(mean, expected, expected, name, least_scale=largest / 100)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _close(
    value: Tensor, expected: Tensor, scale: Tensor, what: str, tolerance: float = TOLERANCE, least_scale: float = 0.0
) -> None:
    assert value.shape == expected.shape, f"{what}: {tuple(value.shape)} for {tuple(expected.shape)}"
    difference = _largest(value - expected)
    assert difference <= tolerance * max(_largest(scale), least_scale), f"{what} differs by {difference}"


def assert_tiles_agree(
    model: nn.Module,
    x: Tensor,
    rows: int,
    cols: int,
    gather_at: str = "never",
    *,
    lean_norm: bool = False,
    recomputed: bool = False,
) -> TilePlan:
    """The whole comparison, on threads; UserError where the plan refuses."""
    layout = Layout(rows=rows, cols=cols)
    plan = plan_tiles(model, layout, (x.shape[1], x.shape[2], x.shape[3]), gather_at, lean_norm=lean_norm)
    reference = whole(model, x)
    ranks = on_threads(layout, lambda tiles: on_tile(model, x, plan, tiles, reference.output.shape, recomputed))
    assert_same(reference, ranks, plan, layout)
    return plan


class _Meeting:
    """What the threads of one group share."""

    def __init__(self, size: int) -> None:
        self.mail = {(a, b): queue.Queue[Tensor]() for a in range(size) for b in range(size)}
        self.barrier = threading.Barrier(size, timeout=60)
        self.table: list[Tensor] = [torch.empty(0)] * size


class _Threads(Group):
    """A group whose ranks are threads."""

    def __init__(self, size: int, index: int, meeting: _Meeting) -> None:
        self.size, self.index, self._meeting = size, index, meeting

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        for peer, tensor in outgoing:
            assert tensor.is_contiguous()
            self._meeting.mail[self.index, peer].put(tensor.clone())

        @functools.cache  # like a real wait, it may be called again
        def wait() -> list[Tensor]:
            for peer, buffer in incoming:
                message = self._meeting.mail[peer, self.index].get(timeout=60)
                assert message.shape == buffer.shape and message.dtype == buffer.dtype, (message.shape, buffer.shape)
                buffer.copy_(message)
            return [buffer for _, buffer in incoming]

        return wait

    def all_gather(self, values: Tensor) -> Tensor:
        self._meeting.table[self.index] = values.clone()
        self._meeting.barrier.wait()
        gathered = torch.stack(self._meeting.table)
        self._meeting.barrier.wait()
        return gathered

    def all_reduce(self, values: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        everybody = self.all_gather(values)
        reduce = {dist.ReduceOp.SUM: "sum", dist.ReduceOp.MAX: "amax", dist.ReduceOp.MIN: "amin"}[op]
        return values.copy_(getattr(everybody, reduce)(0))


def on_threads(
    layout: Layout, fn: Callable[[Tiles], Any], overlap: bool = True, clock: Clock | None = None
) -> list[Any]:
    """What `fn(tiles)` gives on each rank of one tile group; the first error of any is raised here."""
    size, meeting = layout.tiles, _Meeting(layout.tiles)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def rank(index: int) -> None:
        group = _Threads(size, index, meeting)
        alone = _Threads(1, 0, _Meeting(1))
        tiles = Tiles(layout.rows, layout.cols, group, group, alone, overlap, clock or Clock())
        try:
            results[index] = fn(tiles)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return results
