"""What a streamed step keeps: the image and the rest of the network, and in the backward pass one strip at a time."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lartpc_ds.exact.memory.saved import block_bytes
from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.models.build import blocks
from tests.strip_parity import IMAGE, network
from tests.tile_parity import image


def saved_bytes(run: Callable[[], Any], beside: list[Tensor]) -> int:
    """Distinct storages that autograd keeps, beside those of some tensors."""
    known = {tensor.untyped_storage().data_ptr() for tensor in beside}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in known)
    assert result.requires_grad
    return total


def test_a_streamed_forward_keeps_the_image_and_the_rest_only() -> None:
    model, x = network("resnet18"), image((1, *IMAGE))
    plan = plan_strips(model, 3, "layer2_0", IMAGE)
    net = stream(copy.deepcopy(model), plan)
    plain = saved_bytes(functools.partial(model, x), [x, *model.parameters()])
    kept = saved_bytes(functools.partial(net, x), [x, *net.parameters()])
    sequence = blocks(model)
    front, rest = (
        nn.Sequential(OrderedDict(part)) for part in (sequence[: len(plan.front)], sequence[len(plan.front) :])
    )
    small = front(x).detach().requires_grad_()
    assert kept == saved_bytes(functools.partial(rest, small), [*model.parameters()])
    assert 2 * kept < plain


class Probe(nn.Module):
    """Tells when it runs, and when its gradient has come."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def forward(self, x: Tensor) -> Tensor:
        self.events.append("run")
        if x.requires_grad:
            x.register_hook(lambda gradient: self.events.append("done"))
        return x

    def __deepcopy__(self, memo: Any) -> "Probe":
        return Probe(self.events)


def test_the_backward_pass_has_one_strip_alive_at_a_time() -> None:
    events: list[str] = []
    convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]
    model = nn.Sequential(convs[0], Probe(events), convs[1], convs[2], convs[3]).double()
    net = stream(model, plan_strips(model, 4, "3", IMAGE))
    events.clear()
    y = net(image((1, *IMAGE)))
    assert events == ["run"] * 4
    events.clear()
    y.sum().backward()
    assert events == ["run", "done"] * 4


@pytest.mark.parametrize("name", ["resnet18", "convnext"])
def test_what_blocks_keep_is_known_without_running_them(name: str) -> None:
    model, x = network(name), image((1, *IMAGE))
    shadow = copy.deepcopy(model).to("meta")
    sizes = block_bytes(blocks(shadow), x.to("meta"))
    assert sum(size.saved for size in sizes) == saved_bytes(lambda: model(x), [x, *model.parameters()])
    sequence = blocks(model)
    assert sizes[1].output == sequence[1][1](sequence[0][1](x)).nbytes


def test_auto_ends_the_front_where_little_is_alive() -> None:
    """More strips pay for a longer front; one that is as good as a longer one is taken."""
    model, large = network("resnet18"), (3, 640, 96)
    fronts = [len(plan_strips(model, strips, "auto", large).front) for strips in (2, 4, 16)]
    assert fronts == sorted(fronts) and 2 < fronts[0] < fronts[2] < len(blocks(model))
