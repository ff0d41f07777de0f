"""A network that computes only what is lit against a plain run of it: every number that must agree, in float64."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.light import light
from lartpc_ds.exact.memory.lit_plan import LitPlan, plan_lit
from tests.tile_parity import BUFFER_TOLERANCE, TOLERANCE, Numbers, image, whole

__all__ = ["ALONE", "KINDS", "assert_lit_agrees", "assert_same_numbers", "events", "lit_numbers", "ready"]

ALONE = Tiles(1, 1, Alone(), Alone(), Alone())
KINDS = ("empty", "everywhere", "edge", "corner", "track", "far")


def ready(model: nn.Module) -> nn.Module:
    """The model in float64, without biases and weights of norms that are near zero or all equal."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 1 or parameter.detach().abs().max() < 1e-3:
            parameter.data = torch.rand(parameter.shape, generator=generator) * 0.8 + 0.3
    return model.double()


def events(kinds: Sequence[str], planes: int, rows: int, cols: int) -> Tensor:
    """One event of each kind of KINDS: (events, planes, rows, columns), 0 where nothing is lit."""
    lit = torch.zeros(len(kinds), rows, cols, dtype=torch.bool)
    for event, kind in zip(lit, kinds, strict=True):
        match kind:
            case "everywhere":
                event[:] = True
            case "edge":
                event[rows // 3 : rows // 2, -1] = True
            case "corner":
                event[-1, -1] = True
            case "track":
                at = torch.arange(min(rows, cols) // 3)
                event[rows // 4 + at, cols // 3 + at] = True
            case "far":
                event[0, cols // 2] = event[rows // 2, 0] = event[rows // 2 + 3, cols // 2 + 5] = True
            case _:
                assert kind == "empty"
    return image((len(kinds), planes, rows, cols)) * lit[:, None]


def lit_numbers(model: nn.Module, x: Tensor, pixels: int, until: str = "never") -> tuple[Numbers, LitPlan]:
    """Everything that a step of the lit model leaves."""
    plan = plan_lit(model, pixels, until, (x.shape[1], x.shape[2], x.shape[3]))
    return whole(light(copy.deepcopy(model), plan, ALONE), x), plan


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


def assert_same_numbers(numbers: Numbers, reference: Numbers, x: Tensor) -> None:
    """Output, input gradient where x is lit, each weight gradient: 1e-10 of the largest; buffers 1e-12."""
    largest = max(map(_largest, reference.gradients.values()), default=0.0)
    of_lit = (x != 0).any(1, keepdim=True)
    pairs = [
        ("the output", numbers.output, reference.output, 0.0, TOLERANCE),
        ("the input gradient", *(one.input_gradient * of_lit for one in (numbers, reference)), 0.0, TOLERANCE),
        # a bias before a norm has a gradient of nothing but rounding
        *((name, numbers.gradients[name], one, largest / 100, TOLERANCE) for name, one in reference.gradients.items()),
        *(
            (name, numbers.buffers[name].double(), one.double(), 1.0, BUFFER_TOLERANCE)
            for name, one in reference.buffers.items()
        ),
    ]
    assert numbers.gradients.keys() == reference.gradients.keys()
    for name, one, other, least, tolerance in pairs:
        assert one.shape == other.shape, (name, one.shape, other.shape)
        difference = _largest(one - other)
        assert difference <= tolerance * max(_largest(other), least), f"{name} differs by {difference}"


def assert_lit_agrees(
    model: nn.Module, x: Tensor, pixels: int, until: str = "never", *, sparse: bool = True
) -> LitPlan:
    """The whole comparison, of dense and of sparse images; UserError where the plan refuses."""
    reference = whole(model, x)
    numbers, plan = lit_numbers(model, x, pixels, until)
    assert_same_numbers(numbers, reference, x)
    if sparse:
        net = light(copy.deepcopy(model), plan, ALONE)
        assert _largest(net(x.to_sparse()) - reference.output) <= TOLERANCE * _largest(reference.output)
    return plan
