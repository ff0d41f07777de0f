"""A network that computes only what is lit against a plain run of it: every number that must agree, in float64."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.light import light
from lartpc_ds.exact.memory.lit_plan import LitPlan, plan_lit
from lartpc_ds.exact.memory.recompute import recompute
from tests.tile_parity import BUFFER_TOLERANCE, TOLERANCE, Numbers, image, whole

__all__ = ["ALONE", "KINDS", "assert_lit_agrees", "assert_same_numbers", "events", "lit", "precise", "ready"]

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


class _PreciseNorm(nn.BatchNorm2d):
    """A batch norm in training whose variance is right to the last digits; torch's own adds up squares one by one."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.training and self.momentum is not None
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        pixels = x.numel() // x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * pixels / (pixels - 1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


def precise(model: nn.Module) -> nn.Module:
    """A copy of the model for a reference run: of mostly dark maps, torch gets variances right to 3e-12 only."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _PreciseNorm
    return model


def lit(model: nn.Module, plan: LitPlan, *, recomputed: bool = False) -> nn.Module:
    """A copy of the model that computes only what is lit."""
    net = copy.deepcopy(model)
    light(net, plan, ALONE)
    if recomputed:
        recompute(net, ALONE)
    return net


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


def assert_same_numbers(numbers: Numbers, reference: Numbers, x: Tensor, within: float = TOLERANCE) -> None:
    """Output, input gradient where x is lit, each weight gradient: 1e-10 of the largest; buffers 1e-12."""
    largest = max(map(_largest, reference.gradients.values()), default=0.0)
    of_lit = (x != 0).any(1, keepdim=True)
    pairs = [
        ("the output", numbers.output, reference.output, 0.0, within),
        ("the input gradient", *(one.input_gradient * of_lit for one in (numbers, reference)), 0.0, within),
        # a bias before a norm has a gradient of nothing but rounding
        *((name, numbers.gradients[name], one, largest / 100, within) for name, one in reference.gradients.items()),
        *(
            (name, numbers.buffers[name].double(), one.double(), 0.0, BUFFER_TOLERANCE)
            for name, one in reference.buffers.items()
        ),
    ]
    assert numbers.gradients.keys() == reference.gradients.keys()
    for name, one, other, least, tolerance in pairs:
        assert one.shape == other.shape, (name, one.shape, other.shape)
        difference = _largest(one - other)
        assert difference <= tolerance * max(_largest(other), least), f"{name} differs by {difference}"


def assert_lit_agrees(
    model: nn.Module,
    x: Tensor,
    pixels: int,
    until: str = "never",
    *,
    plain: nn.Module | None = None,
    sparse: bool = True,
    tolerance: float = TOLERANCE,
) -> LitPlan:
    """The whole comparison, of dense and of sparse images; UserError where the plan refuses."""
    reference = whole(model if plain is None else plain, x)
    plan = plan_lit(model, pixels, until, (x.shape[1], x.shape[2], x.shape[3]))
    assert_same_numbers(whole(lit(model, plan), x), reference, x, tolerance)
    if sparse:
        y = lit(model, plan)(x.to_sparse())
        assert _largest(y - reference.output) <= TOLERANCE * _largest(reference.output)
    return plan
