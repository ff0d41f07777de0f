"""The network that a run TOML names, and the flat list of blocks of a network.

A network is any nn.Module of one device. Ours are plain `nn.Sequential`s. Rejected: a registry with decorators, or a
base class, which four names do not need.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from lartpc_ds.errors import UserError
from lartpc_ds.models.convnext import convnext_trunk
from lartpc_ds.models.resnet import resnet_trunk
from lartpc_ds.models.towers import tower_blocks
from lartpc_ds.user_code import import_function

__all__ = ["MODELS", "blocks", "build_model"]

MODELS: dict[str, tuple[Callable[..., tuple[dict[str, nn.Module], int]], int, str]] = {
    "resnet18": (partial(resnet_trunk, 18), 64, "batch"),
    "resnet34": (partial(resnet_trunk, 34), 64, "batch"),
    "resnet50": (partial(resnet_trunk, 50), 64, "batch"),
    "convnext": (convnext_trunk, 96, "layer"),
}
"""Each network's trunk, width and norm, by the name of the network."""


def build_model(
    name: str,
    *,
    planes: int,
    num_classes: int,
    width: int | None = None,
    norm: str | None = None,
    plane_mode: Literal["stacked", "towers"] = "stacked",
    stem_stride: tuple[int, int] | None = None,
    target: str | None = None,
) -> nn.Module:
    """A network from (N, planes, wires, ticks) to scores (N, num_classes), for images of any size.

    Args:
        name: one of MODELS; has no effect if `target` is given.
        planes: number of wire planes of an event.
        num_classes: number of scores per event.
        width: number of channels of the first stage; None takes the network's own (64, ConvNeXt 96).
        norm: batch, group or layer; None takes the network's own (batch, ConvNeXt layer).
        stem_stride: (wires, ticks) of a ResNet's first convolution; None takes 2 x 2.
        plane_mode: "stacked" makes planes channels, "towers" gives each plane a tower of shared weights.
        target: "my_pkg.module:function", called as function(planes=..., num_classes=...) instead of all this.

    Raises:
        UserError: a name or norm is unknown, or a target gives no nn.Module.
    """
    if target is not None:
        if (width, norm, plane_mode, stem_stride) != (None, None, "stacked", None):
            raise UserError(
                f"model.target = {target!r} builds the whole network, so model.width, norm, planes and stem_stride "
                f"have no effect (given: {width!r}, {norm!r}, {plane_mode!r}, {stem_stride!r}); remove them"
            )
        return _from_target(target, planes, num_classes)
    if name not in MODELS:
        raise UserError(f"model.name = {name!r} is not known; choose one of {', '.join(MODELS)}, or set model.target")
    make_trunk, own_width, own_norm = MODELS[name]
    towers = plane_mode == "towers"
    if stem_stride is not None and not name.startswith("resnet"):
        raise UserError(f"model.stem_stride = {list(stem_stride)} is for resnet networks, not {name}; remove it")
    trunk, channels = make_trunk(
        planes=1 if towers else planes,
        width=own_width if width is None else width,
        norm=own_norm if norm is None else norm,
        **({} if stem_stride is None else {"stem_stride": stem_stride}),
    )
    if towers:
        return nn.Sequential(OrderedDict(tower_blocks(trunk, channels, planes, num_classes)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, num_classes))
    return nn.Sequential(OrderedDict({**trunk, "head": head}))


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The flat sequence of named blocks of a model; run in this order, they compute model(x).

    An nn.Sequential is such a sequence itself; any other model gives it by a method `blocks()`.

    Raises:
        UserError: the model has no such method, or what it gives is not a sequence that holds every parameter.
    """
    name = type(model).__name__
    supplied = getattr(model, "blocks", None)
    if callable(supplied) and not isinstance(supplied, nn.Module):  # many networks have a ModuleList of that name
        sequence = list(supplied())
    elif isinstance(model, nn.Sequential):
        sequence = list(model._modules.items())  # named_children() would drop a block that is used twice
    else:
        raise UserError(
            f"model {name} has no blocks() -> list[tuple[str, nn.Module]]; pipeline stages (layout.pipe > 1), "
            "streaming (memory.stream_strips), block recomputation (memory.recompute) and a named layout.gather_at "
            "need it; add the method or leave those keys out"
        )
    _check_blocks(name, model, sequence)
    return sequence


def _check_blocks(name: str, model: nn.Module, sequence: list[tuple[str, nn.Module]]) -> None:
    for entry in sequence:
        match entry:
            case (str(), nn.Module()):
                continue
        raise UserError(f"blocks() of model {name} must give (name, nn.Module) pairs, got {entry!r}")
    names = [block for block, _ in sequence]
    if len(set(names)) < len(names):
        raise UserError(f"blocks() of model {name} gives a name twice: {', '.join(names)}")
    held = {parameter for _, module in sequence for parameter in module.parameters()}
    missing = [key for key, parameter in model.named_parameters() if parameter not in held]
    if missing:
        raise UserError(f"blocks() of model {name} leaves out parameters: {', '.join(missing)}")


def _from_target(target: str, planes: int, num_classes: int) -> nn.Module:
    setting = f"model.target = {target!r}"
    function = import_function("model.target", target, "planes, num_classes")
    try:
        inspect.signature(function).bind(planes=planes, num_classes=num_classes)
    except TypeError as error:
        raise UserError(f"{setting}: must accept function(planes=..., num_classes=...) ({error})") from error
    model = function(planes=planes, num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise UserError(f"{setting}: returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model
