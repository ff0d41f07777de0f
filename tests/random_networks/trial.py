"""One case: two steps on one device with plain torch, and on tiles with levers; every number that must agree."""

import copy
import math
import queue
import re
import threading
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.kernels.collectives import sum_over_ranks
from lartpc_ds.exact.memory.recompute import check_blocks
from lartpc_ds.exact.memory.strip_plan import StripPlan, plan_strips
from lartpc_ds.exact.spatialize import TilePlan, plan_tiles
from tests.random_networks.networks import Case
from tests.tile_parity import Numbers, image, on_threads

__all__ = ["Outcome", "trial"]

Kind = Literal["exact", "refused", "refused vaguely", "refused late", "wrong", "raised", "stuck"]
TOLERANCE = 1e-10
_PLACE = re.compile(r"\((\w+\.py:\d+|torch\.nn)\)|layout\.(rows|cols|gather_at) = |memory\.\w+ = ")


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    kind: Kind
    told: str = ""

    @property
    def right(self) -> bool:
        """Exact, or refused in planning with layer and line."""
        return self.kind in ("exact", "refused")


def trial(case: Case) -> Outcome:
    """Run a case."""
    channels, rows, cols = case.images[0].shape[1:]
    try:
        plan = plan_tiles(
            case.network, case.layout, (channels, rows, cols), case.gather_at, lean_norm=case.memory.lean_norm
        )
        strips = None
        if case.memory.stream_strips > 1:
            memory = case.memory
            strips = plan_strips(case.network, memory.stream_strips, memory.stream_until, (channels, rows, cols))
        if case.memory.recompute == "block":
            front = () if strips is None else strips.front
            check_blocks(case.network, (channels, rows, cols), [*front, *plan.remade_at])
    except UserError as error:
        return Outcome("refused" if _PLACE.search(str(error)) else "refused vaguely", str(error))
    except Exception as error:
        return Outcome("raised", f"in planning: {type(error).__name__}: {error}")
    weights, reference = _plain(case.network, case.images)
    try:
        ranks = on_threads(
            case.layout, lambda tiles: _rank(case, plan, strips, tiles, weights, reference[0].output.shape)
        )
    except UserError as error:
        return Outcome("refused late", str(error))
    except (queue.Empty, threading.BrokenBarrierError) as error:
        return Outcome("stuck", repr(error))
    except Exception as error:
        return Outcome("raised", f"{type(error).__name__}: {error}")
    return _judged(case, plan, reference, ranks)


def _judged(case: Case, plan: TilePlan, reference: list[Numbers], ranks: list[list[Numbers]]) -> Outcome:
    for step, expected in enumerate(reference):
        found = _joined([numbers[step] for numbers in ranks], plan, case)
        differences = _differences(found, expected)
        if max(differences.values()) <= TOLERANCE:
            continue
        rounding = _differences(_plain(case.network, case.images, rounded=True)[1][step], expected)
        for name, difference in differences.items():
            if difference > max(TOLERANCE, 100 * rounding.get(name, 0.0)):
                told = f"step {step}: {name} differs by {difference:.1e} (rounding: {rounding.get(name, 0.0):.1e})"
                return Outcome("wrong", told)
    return Outcome("exact")


def _plain(
    network: nn.Module, images: tuple[Tensor, Tensor], rounded: bool = False
) -> tuple[dict[str, Tensor], list[Numbers]]:
    """Weights of the second step, and the numbers of both; with `rounded`, as more rounding would have them."""
    model, steps = copy.deepcopy(network), []
    for module in model.modules() if rounded else ():
        module.register_forward_pre_hook(lambda _, maps: tuple(_Rounded.apply(one) for one in maps))
    weights: dict[str, Tensor] = {}
    for x in images:
        x = x.clone().requires_grad_()
        y = model(x.clone())  # a network may change its images in place
        (y * image(y.shape, 99)).sum().backward()
        steps.append(_numbers(model, y, x))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                weights.setdefault(
                    name, parameter - 0.01 * (0 if parameter.grad is None else parameter.grad.clamp(-1, 1))
                )
                parameter.copy_(weights[name])
        model.zero_grad()
    return weights, steps


class _Rounded(torch.autograd.Function):
    """Noise in the last digits of a map, and of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * (1 + 1e-15 * image(x.shape, 7))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (1 + 1e-15 * image(gradients[0].shape, 8))


def _numbers(model: nn.Module, y: Tensor, x: Tensor) -> Numbers:
    assert x.grad is not None
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return Numbers(y.detach(), x.grad, gradients, {name: one.clone() for name, one in model.named_buffers()})


def _rank(
    case: Case, plan: TilePlan, strips: StripPlan | None, tiles: Tiles, weights: dict[str, Tensor], output: torch.Size
) -> list[Numbers]:
    model, steps = copy.deepcopy(case.network), []
    apply(model, case.memory, plan, tiles, strips)
    (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)
    for images in case.images:
        x = images[:, :, top:bottom, left:right].clone().requires_grad_()
        y = model(x.clone())
        expected = image(output, 99)
        if plan.output is None:
            loss = (y * expected).sum()
        else:
            loss = sum_over_ranks((y * _part(expected, plan, tiles.row, tiles.col)).sum(), tiles.group)
        loss.backward()
        steps.append(_numbers(model, y, x))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        model.zero_grad()
    return steps


def _part(whole: Tensor, plan: TilePlan, row: int, col: int) -> Tensor:
    assert plan.output is not None
    for dim, (start, stop) in zip(plan.output.dims, plan.output.tile(row, col), strict=True):
        whole = whole.narrow(dim, start, stop - start)
    return whole


def _joined(ranks: list[Numbers], plan: TilePlan, case: Case) -> Numbers:
    """As one device has them; of what all ranks must have alike, the one that is furthest from the first."""
    layout, first = case.layout, ranks[0]
    x_gradient = torch.zeros_like(case.images[0])
    shape = list(first.output.shape)
    if plan.output is not None:
        for dim, bounds in zip(plan.output.dims, plan.output.bounds, strict=True):
            shape[dim] = bounds[-1]
    output = torch.zeros(shape, dtype=first.output.dtype)
    for rank, numbers in enumerate(ranks):
        at = layout.coordinates(rank)
        (top, bottom), (left, right) = plan.tile(at.row, at.col)
        x_gradient[:, :, top:bottom, left:right] = numbers.input_gradient / layout.tiles
        if plan.output is not None:
            _part(output, plan, at.row, at.col).copy_(numbers.output)
    if plan.output is None:
        output = _furthest([numbers.output for numbers in ranks])
    gradients = {name: torch.stack([one.gradients[name] for one in ranks]).mean(0) for name in first.gradients}
    buffers = {name: _furthest([one.buffers[name] for one in ranks]) for name in first.buffers}
    return Numbers(output, x_gradient, gradients, buffers)


def _furthest(values: list[Tensor]) -> Tensor:
    return max(values, key=lambda one: float((one.double() - values[0].double()).abs().sum()))


def _differences(found: Numbers, expected: Numbers) -> dict[str, float]:
    """The largest of each tensor, relative to the largest number of its kind."""
    if found.gradients.keys() != expected.gradients.keys():
        return {f"which weights have gradients ({found.gradients.keys() ^ expected.gradients.keys()})": math.inf}
    # of a bias before a norm the gradient is nothing but rounding
    largest = max((float(one.abs().max()) for one in expected.gradients.values()), default=0.0) / 100
    pairs = [
        ("the output", found.output, expected.output, 0.0),
        ("the input's gradient", found.input_gradient, expected.input_gradient, largest * 1e-3),
        *((name, found.gradients[name], one, largest) for name, one in expected.gradients.items()),
        *((name, found.buffers[name].double(), one.double(), 1e-3) for name, one in expected.buffers.items()),
    ]
    differences = {}
    for name, one, other, least in pairs:
        if one.shape != other.shape:
            return {f"the shape of {name}": math.inf}
        scale = max(float(other.abs().max()), least) if other.numel() else 0.0
        difference = float((one - other).abs().max()) / scale if scale else 0.0
        differences[name] = difference if math.isfinite(difference) else math.inf
    return differences
