"""Channels-last maps stay so through every layer of a tile, forward and backward: contiguous ones take twice the time.

The strides themselves are compared with torch's own, because those of a single event can look channels-last and yet
make torch choose the slower layout.
"""

import copy

import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests.tile_parity import on_threads

IMAGE = (2, 128, 192)


def channels_last(x: Tensor) -> bool:
    """As torch itself decides when it makes a map like this one."""
    made = torch.empty_like(x)
    return x.stride() == made.stride() == made.contiguous(memory_format=torch.channels_last).stride()


def layouts(model: nn.Module, x: Tensor) -> dict[str, bool]:
    """Of each module's output and of its gradient."""
    found: dict[str, bool] = {}

    def watch(name: str) -> None:
        def note(module: nn.Module, args: object, y: Tensor) -> None:
            if y.ndim == 4 and min(y.shape[1:]) > 1:
                found[name] = channels_last(y)
                y.register_hook(lambda gradient: found.update({f"gradient of {name}": channels_last(gradient)}))

        dict(model.named_modules())[name].register_forward_hook(note)

    for name, module in model.named_modules():
        if not list(module.children()) and not isinstance(module, nn.ReLU | nn.Identity):
            watch(name)
    model(x).sum().backward()
    return found


def test_no_layer_leaves_channels_last() -> None:
    model = build_model("resnet18", planes=IMAGE[0], num_classes=3, width=8)
    x = torch.randn(1, *IMAGE)
    for layout in (Layout(rows=2), Layout(cols=2)):
        plan = plan_tiles(model, layout, IMAGE)

        def rank(tiles: Tiles, plan: object = plan) -> dict[str, bool]:
            converted = convert(copy.deepcopy(model), plan, tiles)  # type: ignore[arg-type]
            (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)  # type: ignore[attr-defined]
            tile = x[:, :, top:bottom, left:right]
            return layouts(converted, tile.contiguous(memory_format=torch.channels_last))

        for found in on_threads(layout, rank):
            # the head pools the last map: its gradient is the same number everywhere, in torch as well
            wrong = [name for name, right in found.items() if not right]
            assert len(found) > 30 and not wrong, wrong
