"""A streamed network against a plain run: every number that must agree, in float64."""

import copy

import torch
from torch import Tensor, nn

from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import StripPlan, plan_strips
from lartpc_ds.models.build import build_model
from tests.tile_parity import Numbers, whole

__all__ = ["IMAGE", "TOLERANCE", "difference", "network", "streamed"]

TOLERANCE = 1e-10
IMAGE = (3, 77, 45)


def network(name: str, norm: str = "layer") -> nn.Module:
    torch.manual_seed(3)
    model = build_model(name, planes=3, num_classes=4, width=4, norm=norm).double()
    for key, parameter in model.named_parameters():
        if key.endswith("scale"):
            nn.init.ones_(parameter)  # 1e-6, ConvNeXt's own, would hide its inner branch
        elif parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def streamed(model: nn.Module, x: Tensor, strips: int, until: str) -> tuple[Numbers, StripPlan]:
    plan = plan_strips(model, strips, until, (x.shape[1], x.shape[2], x.shape[3]))
    return whole(stream(copy.deepcopy(model), plan), x), plan


def difference(numbers: Numbers, reference: Numbers) -> float:
    """The largest of any number, relative to the largest reference value of its kind."""
    assert numbers.gradients.keys() == reference.gradients.keys()
    largest = max((float(one.abs().max()) for one in reference.gradients.values()), default=0.0)
    pairs = [
        (numbers.output, reference.output, 0.0),
        (numbers.input_gradient, reference.input_gradient, 0.0),
        # a bias before a norm has a gradient of nothing but rounding
        *((one, reference.gradients[name], largest / 100) for name, one in numbers.gradients.items()),
        *((one.double(), reference.buffers[name].double(), 0.0) for name, one in numbers.buffers.items()),
    ]
    differences = []
    for one, other, least in pairs:
        assert one.shape == other.shape
        scale = max(float(other.abs().max()), least)
        differences.append(float((one - other).abs().max()) / scale if scale else float(one.abs().max()))
    return max(differences)
