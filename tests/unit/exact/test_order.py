"""Messages and weight gradients come in the same order on every rank, and a plan in which they do not is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.order import Messenger, backward_order
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import TileView
from lartpc_ds.exact.kernels.convolution import Geometry, convolve, in_place
from lartpc_ds.exact.kernels.halo import padded
from lartpc_ds.exact.ops import convolution
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout


class Message(Messenger):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_the_order_is_that_in_which_autograd_runs() -> None:
    weights = {name: torch.ones(2, requires_grad=True) for name in ("a", "b", "shared")}
    ran: list[str] = []
    for name, weight in weights.items():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: ran.append(name))
    x = weights["a"] * weights["shared"]
    x.register_hook(lambda _: ran.append("a message between tiles"))
    y = Message.apply(x) * weights["b"] * weights["shared"]
    assert isinstance(y, Tensor)
    order = backward_order([y], {weight: name for name, weight in weights.items()})
    y.sum().backward()
    assert order == ran == ["b", "a message between tiles", "a", "shared"]


def two_nodes(
    tiles: Tiles,
    here: TileView,
    geometry: Geometry,
    outputs: tuple[int, int],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
) -> Tensor:
    """A convolution whose halo is a node of its own on those ranks that pad."""
    axes = [
        in_place(window, own, need, size)
        for window, own, need, size in zip((geometry.rows, geometry.cols), here.own, here.need, outputs, strict=True)
    ]
    if None not in axes:
        return convolve(tiles, here, geometry, outputs, x, weight, bias, groups)
    return F.conv2d(padded(tiles, x, here), weight, bias, geometry.stride, 0, geometry.dilation, groups)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 2),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 4, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
    ],
    ids=str,
)
def test_a_plan_with_two_orders_is_refused(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2), layer), (2, 21, 20)  # cut at 0, 5, 11 behind the stride
    plan_tiles(model, Layout(rows=2), image, "never")
    monkeypatch.setattr(convolution, "convolve", two_nodes)
    with pytest.raises(UserError, match=r"comes to (1\.|a message).* the ranks would wait for each other"):
        plan_tiles(model, Layout(rows=2), image, "never")
