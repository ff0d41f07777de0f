"""Which norms are lean, what they then keep, and the parts they are made of."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.exact.grid.cuts import tensors_of
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.kernels.pool_places import Pool, choose, give_back
from lartpc_ds.exact.kernels.weight_gradients import weight_gradient
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.exact.trace.dry_run import dry_run
from lartpc_ds.exact.trace.followers import followers
from lartpc_ds.exact.trace.trace import Tracer
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests.examples import examples
from tests.tile_parity import assert_tiles_agree, image


class _Net(nn.Module):
    """A convolution, a norm, and whatever comes then."""

    def __init__(self, then: Callable[["_Net", Tensor], object]) -> None:
        super().__init__()
        self.conv, self.norm, self.after = nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)
        self._then = then

    def forward(self, x: Tensor) -> object:
        return self._then(self, self.norm(self.conv(x)))


THEN: dict[str, tuple[Callable[[_Net, Tensor], object], bool, bool]] = {
    "relu, conv": (lambda net, y: net.after(F.relu(y)), True, True),
    "relu in place, pool": (lambda net, y: F.max_pool2d(F.relu_(y), 2), True, True),
    "pool, then in place": (lambda net, y: net.after(F.relu_(F.max_pool2d(F.relu(y), 2))), True, True),
    "relu, read twice": (lambda net, y: (z := F.relu(y), net.after(z) + net.after(z))[1], True, False),
    "relu, mean": (lambda net, y: F.relu(y).mean((2, 3)), True, False),
    "relu, and the norm itself": (lambda net, y: net.after(F.relu(y)) + net.after(y), False, False),
    "two relus": (lambda net, y: net.after(F.relu(y)) + net.after(F.relu(y)), False, False),
    "relu, but the norm is returned": (lambda net, y: (net.after(F.relu(y)), y), False, False),
    "gelu": (lambda net, y: net.after(F.gelu(y)), False, False),
}


@pytest.mark.parametrize("then", THEN)
def test_a_norm_is_lean_where_a_relu_is_all_that_reads_it(then: str) -> None:
    function, lean, owns = THEN[then]
    model, tracer = _Net(function).to("meta"), Tracer(one_tile=True)
    with torch.no_grad(), dry_run(model), tracer.inside(model, None):
        result = model(torch.empty(2, 2, 9, 9, device="meta"))
    found = followers(tracer.calls, [tracer.number_of(one) for one in tensors_of((result,), {})])
    key = ("norm", "batch_norm")
    assert (key in found.norms, key in found.owners) == (lean, owns)
    assert (("conv", "conv2d") in found.convolutions) == lean  # 16 channels of 7 x 7 out of 2 of 9 x 9


@pytest.mark.parametrize("then", [name for name, (_, lean, _) in THEN.items() if lean])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 2)])
def test_whoever_reads_the_relu_gets_its_numbers(then: str, rows: int, cols: int) -> None:
    torch.manual_seed(1)
    net = _Net(THEN[then][0]).double()
    assert_tiles_agree(net, image((2, 2, 23, 19)), rows, cols, lean_norm=True)


def test_a_stem_keeps_its_image_and_bytes_and_a_block_three_maps_of_four() -> None:
    """Counted by what is alive between forward and backward, whoever holds it."""
    model = build_model("resnet18", planes=1, num_classes=2, width=16)
    x = torch.rand(1, 1, 128, 96).contiguous(memory_format=torch.channels_last)
    held = {}
    for lean in (False, True):
        net = build_model("resnet18", planes=1, num_classes=2, width=16)
        net.load_state_dict(model.state_dict())
        convert(net, plan_tiles(net, Layout(), (1, 128, 96), lean_norm=lean), Tiles(1, 1, Alone(), Alone(), Alone()))
        front = nn.Sequential(*list(net.children())[:3])
        held[lean] = _alive_bytes(lambda front=front: front(x))
    stem, small = 16 * 64 * 48 * 4, 16 * 32 * 24 * 4
    # plain: the norm's input, the ReLU, the pool's indices and result; four maps of the block
    assert held[False] == pytest.approx(2 * stem + 2 * small + small + 4 * small, rel=0.02)
    # lean: the pool's bytes and result; three maps of the block
    assert held[True] == pytest.approx(small / 4 + small + 3 * small, rel=0.02)


def _alive_bytes(run: Callable[[], Tensor]) -> int:
    """Tensor memory that `run` leaves while its result lives, counted by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    run().sum().backward()  # what is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = run()
    total = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert y.requires_grad
    return int(total)


@examples(150)
@given(st.data())
def test_bytes_choose_and_give_back_as_torch_does(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(*[st.integers(1, 5)] * 2), "kernel")
    stride = data.draw(st.tuples(*[st.integers(1, 4)] * 2), "stride")
    padding = tuple(data.draw(st.integers(0, size // 2), "padding") for size in kernel)
    size = tuple(data.draw(st.integers(max(1, k - 2 * p), 24), "size") for k, p in zip(kernel, padding, strict=True))
    # few values, so that windows have ties
    x = torch.randint(0, 3, (2, 3, *size)).double().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = F.max_pool2d(x, kernel, stride, padding)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    pool = Pool(kernel, stride, (padding[0], padding[1]))
    found, places = choose(pool, x.detach(), (y.shape[2], y.shape[3]))
    assert places.dtype == torch.uint8 and torch.equal(found, y)
    torch.testing.assert_close(give_back(pool, gradient, places, size), x.grad, rtol=0, atol=1e-14)


def test_many_bands_are_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A band of one row each: overlapping windows give to the same row from two bands."""
    for module in ("pool_places", "weight_gradients"):
        monkeypatch.setattr(f"lartpc_ds.exact.kernels.{module}.rows_at_once", lambda *_: 1)
    x = torch.randn(2, 4, 13, 9, dtype=torch.float64, requires_grad=True)
    y = F.max_pool2d(x, 3, 2, 1)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    pool = Pool((3, 3), (2, 2), (1, 1))
    found, places = choose(pool, x.detach(), (7, 5))
    assert torch.equal(found, y)
    torch.testing.assert_close(give_back(pool, gradient, places, (13, 9)), x.grad, rtol=0, atol=1e-14)
    weight = torch.randn(6, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    z = F.conv2d(x.detach(), weight, None, (2, 1), (2, 1), (2, 1), 2)
    gradient = torch.randn_like(z)
    z.backward(gradient)
    banded = weight_gradient(gradient, x.detach(), weight.detach(), (2, 1), (2, 1), (2, 1), 2)
    torch.testing.assert_close(banded, weight.grad, rtol=1e-12, atol=1e-12)
