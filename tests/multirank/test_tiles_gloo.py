"""The comparison of tests.tile_parity with real processes and messages."""

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lartpc_ds.exact.grid.groups import make_groups
from lartpc_ds.exact.spatialize import plan_tiles, spatialize
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests.ranks import run_ranks
from tests.tile_parity import Numbers, assert_same, image, on_tile, whole
from tests.unet_variants import UNet

SIZE = (101, 133)


def model(name: str) -> nn.Module:
    torch.manual_seed(6)
    if name == "resnet18":
        return build_model("resnet18", planes=2, num_classes=5, width=4).double()
    if name == "u-net":
        return UNet(2, 3).double()
    if name == "shallow":  # deeper, the first gradient would be mostly rounding
        first = [nn.Conv2d(2, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        last = [nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*first, *last, nn.Linear(8, 5)).double()
    assert name == "mixture"
    return nn.Sequential(
        nn.Conv2d(2, 4, 7, 3, 2),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4),
        nn.AdaptiveMaxPool2d(1),
    ).double()


def on_rank(name: str, layout: Layout, gather_at: str, overlap: bool) -> Numbers:
    net, x = model(name), image((2, 2, *SIZE))
    with torch.no_grad():
        shape = model(name)(x).shape
    plan = plan_tiles(net, layout, (2, *SIZE), gather_at)
    return on_tile(net, x, plan, make_groups(layout).tiles(overlap=overlap), shape)


@pytest.mark.parametrize(
    ("name", "rows", "cols", "gather_at", "overlap"),
    [
        ("mixture", 2, 1, "never", True),
        ("mixture", 2, 2, "never", False),
        ("resnet18", 2, 2, "layer3_0", True),
        ("u-net", 3, 2, "never", True),
    ],
)
def test_processes_agree_with_one_device(name: str, rows: int, cols: int, gather_at: str, overlap: bool) -> None:
    layout, net = Layout(rows=rows, cols=cols), model(name)
    ranks = run_ranks(layout.world_size, on_rank, name, layout, gather_at, overlap)
    plan = plan_tiles(net, layout, (2, *SIZE), gather_at)
    assert_same(whole(net, image((2, 2, *SIZE))), ranks, plan, layout)


DATA = Layout(data=2, rows=2)


def scores_and_weights() -> tuple[Tensor, Tensor]:
    """Two events, and a loss that is linear in their scores."""
    return image((2, 2, *SIZE)), image((2, 5), seed=99)


def trained(layout: Layout, norm_scope: str) -> tuple[list[str], Numbers]:
    """One event a tile group, through the public function; gradients averaged over all ranks as replicas do."""
    groups, net = make_groups(layout), model("resnet18")
    at = layout.coordinates(groups.rank)
    (top, bottom), (left, right) = plan_tiles(net, layout, (2, *SIZE)).tile(at.row, at.col)
    x, weights = (both[at.data : at.data + 1] for both in scores_and_weights())
    mine = x[:, :, top:bottom, left:right].clone().requires_grad_()
    net = spatialize(net, layout, groups, (2, *SIZE), norm_scope=norm_scope)
    y = net(mine)
    (y * weights).sum().backward()
    gradients = {}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        gradients[name] = parameter.grad / layout.world_size
    assert mine.grad is not None
    return list(net.state_dict()), Numbers(y.detach(), mine.grad, gradients, dict(net.named_buffers()))


def one_device(events: Sequence[int]) -> Numbers:
    """These events as one batch."""
    net, (x, weights) = model("resnet18"), scores_and_weights()
    mine = x[list(events)].clone().requires_grad_()
    y = net(mine)
    (y * weights[list(events)]).sum().backward()
    assert mine.grad is not None
    gradients = {name: torch.as_tensor(parameter.grad) for name, parameter in net.named_parameters()}
    return Numbers(y.detach(), mine.grad, gradients, dict(net.named_buffers()))


def _agree(value: Tensor, expected: Tensor, scale: float = 0.0) -> None:
    assert float((value - expected).abs().max()) <= 1e-10 * max(float(expected.abs().max()), scale)


@pytest.mark.parametrize("norm_scope", ["tiles", "all"])
def test_data_and_rows(norm_scope: str) -> None:
    """Batch statistics of each event alone, or of the batch of both."""
    results = run_ranks(DATA.world_size, trained, DATA, norm_scope)
    if norm_scope == "all":
        both = one_device([0, 1])
        references = [Numbers(both.output[[i]], both.input_gradient[[i]], both.gradients, both.buffers) for i in (0, 1)]
        expected = {name: gradient / 2 for name, gradient in both.gradients.items()}
    else:
        references = [one_device([0]), one_device([1])]
        expected = {
            name: (references[0].gradients[name] + references[1].gradients[name]) / 2
            for name in results[0][1].gradients
        }
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    bounds = plan_tiles(model("resnet18"), DATA, (2, *SIZE)).bounds[0]
    for rank, (keys, numbers) in enumerate(results):
        at = DATA.coordinates(rank)
        reference = references[at.data]
        assert keys == list(model("resnet18").state_dict())
        _agree(numbers.output, reference.output)
        part = reference.input_gradient[:, :, bounds[at.row] : bounds[at.row + 1]]
        _agree(numbers.input_gradient / DATA.tiles, part, float(reference.input_gradient.abs().max()))
        for name, gradient in numbers.gradients.items():
            _agree(gradient, expected[name], largest / 100)
        for name, buffer in numbers.buffers.items():
            _agree(buffer.double(), reference.buffers[name].double())
    assert not torch.equal(references[0].output, references[1].output)


def in_bfloat16(layout: Layout) -> tuple[Tensor, Tensor]:
    groups, net = make_groups(layout), model("shallow").float()
    at = layout.coordinates(groups.rank)
    (top, bottom), (left, right) = plan_tiles(net, layout, (2, *SIZE)).tile(at.row, at.col)
    net = spatialize(net, layout, groups, (2, *SIZE))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(image((2, 2, *SIZE)).float()[:, :, top:bottom, left:right])
    y.float().square().sum().backward()
    gradient = torch.as_tensor(next(net.parameters()).grad)
    dist.all_reduce(gradient)
    return y.detach().float(), gradient / layout.world_size


def test_autocast_to_bfloat16_is_as_near_as_its_rounding() -> None:
    """The first layer's gradient has gone through every other."""
    net = model("shallow").float()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(image((2, 2, *SIZE)).float())
    y.float().square().sum().backward()
    exact = model("shallow")
    scores = exact(image((2, 2, *SIZE)))
    scores.square().sum().backward()
    rounding = [_distance(y.float(), scores), _distance(next(net.parameters()).grad, next(exact.parameters()).grad)]
    for output, gradient in run_ranks(2, in_bfloat16, Layout(rows=2)):
        assert _distance(output, scores) <= 3 * rounding[0] < 0.2
        assert _distance(gradient, next(exact.parameters()).grad) <= 3 * rounding[1] < 0.2


def _distance(value: Tensor | None, exact: Tensor | None) -> float:
    assert value is not None and exact is not None
    return float(((value.double() - exact).norm() / exact.norm()).detach())
