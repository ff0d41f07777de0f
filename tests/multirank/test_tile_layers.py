"""Every layer on every grid against one device, over sizes from one pixel up: exact, or refused for an empty tile."""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import EmptyTile
from lartpc_ds.models.norms import PixelLayerNorm
from tests.examples import examples
from tests.tile_cases import (
    GRIDS,
    agrees_with_itself,
    average_pools,
    convolutions,
    every_window_reads,
    images,
    max_pools,
    transposed_convolutions,
)
from tests.tile_parity import assert_tiles_agree, whole


class Calls(nn.Module):
    """A function of the map, with the layers that it needs."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def check(model: nn.Module, x: Tensor, grid: tuple[int, int]) -> str:
    """Exact or refused; an AssertionError otherwise. Discards what plain torch refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of copies for even kernels
            assume(not isinstance(model, nn.MaxPool2d) or every_window_reads(model, x))
            assume(not isinstance(model, nn.Upsample) or agrees_with_itself(model, x))
            whole(model, x)
    except (RuntimeError, ValueError):
        assume(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_tiles_agree(model, x, *grid)
    except EmptyTile as error:
        cut = re.search(r"cuts (\d+) (?:rows|columns) of its output into (\d+) tiles", str(error))
        assert cut is not None and int(cut[1]) < int(cut[2]), error
        return "refused"
    except UserError as error:
        assert "pixels cannot be cut" in str(error) and (x.shape[2] < grid[0] or x.shape[3] < grid[1]), error
        return "refused"
    return "exact"


def sweep(models: st.SearchStrategy[Any], draw_image: Callable[[nn.Module], Any], nightly: int) -> None:
    """Check drawn models, `nightly` of them at night; at least a third must run, so that refusals prove nothing."""
    outcomes: Counter[str] = Counter()
    drawn = examples(nightly)

    @settings(drawn, suppress_health_check=HealthCheck)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        torch.manual_seed(0)
        model = data.draw(models)
        outcomes[check(model, data.draw(draw_image(model)).make(), data.draw(st.sampled_from(GRIDS)))] += 1

    run()
    assert outcomes["exact"] >= drawn.max_examples / 3, outcomes


def test_convolutions() -> None:
    sweep(convolutions(), lambda conv: images(conv.in_channels), 400)


def test_transposed_convolutions() -> None:
    sweep(transposed_convolutions(), lambda conv: images(conv.in_channels, largest=40), 250)


def test_max_pools_and_their_ties() -> None:
    sweep(max_pools(), lambda _: images(2, ties=True), 250)


def test_average_pools() -> None:
    sweep(average_pools(), lambda _: images(2), 200)


def _used(norm: Any) -> nn.Module:
    """Weights and running statistics that are not those of a fresh layer."""
    generator = torch.Generator().manual_seed(7)
    norm = norm.double()
    for name, value in norm.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in name else 0.0))
    return nn.Sequential(nn.Conv2d(6, 6, 1).double(), norm)


def _frozen(norm: nn.Module) -> nn.Module:
    return norm.eval().requires_grad_(False)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(6),
    "batch momentum None": lambda: nn.BatchNorm2d(6, momentum=None),
    "batch without affine": lambda: nn.BatchNorm2d(6, affine=False),
    "batch without running statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "batch evaluated": lambda: nn.BatchNorm2d(6).eval(),
    "batch frozen": lambda: _frozen(nn.BatchNorm2d(6)),
    "group": lambda: nn.GroupNorm(3, 6),
    "group of all": lambda: nn.GroupNorm(1, 6, affine=False),
    "instance": lambda: nn.InstanceNorm2d(6),
    "instance with affine": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance with running statistics": lambda: nn.InstanceNorm2d(6, track_running_stats=True, momentum=0.3),
    "instance evaluated": lambda: nn.InstanceNorm2d(6, track_running_stats=True).eval(),
    "layer": lambda: PixelLayerNorm(6),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    sweep(st.builds(lambda: _used(NORMS[name]())), lambda _: images(6, largest=30), 25)


REDUCTIONS: dict[str, Callable[[], nn.Module]] = {
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d((1, 1)),
    "AdaptiveMaxPool2d of ReLU": lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
    "mean": lambda: Calls(lambda x: x.mean((2, 3))),
    "mean, kept": lambda: Calls(lambda x: torch.mean(x, dim=(-1, -2), keepdim=True)),
    "sum": lambda: Calls(lambda x: x.sum((2, 3)) / 100),
    "sum of channels": lambda: Calls(lambda x: x.sum(1).unsqueeze(1)),
    "largest of channels": lambda: Calls(lambda x: torch.cat([x.amax(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)),
    "channels last": lambda: Calls(lambda x: x.permute(0, 2, 3, 1).mean((1, 2))),
    "squeeze and excite": lambda: Calls(lambda x, pool: x * pool(x).sigmoid().expand_as(x), nn.AdaptiveAvgPool2d(1)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    sweep(st.builds(REDUCTIONS[name]), lambda _: images(3, largest=40, ties=True), 30)


@st.composite
def _resamplings(draw: st.DrawFn) -> nn.Module:
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bilinear aligned"]))
    aligned = {"bilinear": False, "bilinear aligned": True}.get(mode)
    mode = mode.split(" ")[0]
    if draw(st.booleans()):
        size = draw(st.integers(1, 60)), draw(st.integers(1, 60))
        return nn.Upsample(size, mode=mode, align_corners=aligned)
    factor = draw(st.sampled_from([1, 2, 3, 0.5, 1.5, 2.7, (2.0, 0.4)]))
    recompute = draw(st.booleans())
    return nn.Upsample(scale_factor=factor, mode=mode, align_corners=aligned, recompute_scale_factor=recompute)


def test_resampling() -> None:
    sweep(_resamplings(), lambda _: images(2, largest=40), 200)


def test_padding_and_cropping() -> None:
    pads = st.tuples(*(st.integers(-4, 5) for _ in range(4)))
    models = st.builds(lambda pad, value: nn.ConstantPad2d(pad, value), pads, st.sampled_from([0.0, -2.5]))
    sweep(models, lambda _: images(2, largest=40), 100)


@st.composite
def _joined(draw: st.DrawFn) -> nn.Module:
    """A map that went down and up again meets the one that did not: their tiles differ."""
    kernel, stride, padding = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    down = draw(st.sampled_from([nn.Conv2d(3, 3, kernel, stride, padding), nn.MaxPool2d(stride, ceil_mode=True)]))
    how, first = draw(st.sampled_from(["add", "cat", "pad"])), draw(st.booleans())

    def join(x: Tensor, down: nn.Module, last: nn.Module) -> Tensor:
        y = down(x)
        if how == "pad":
            y = F.interpolate(y, scale_factor=stride)
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        else:
            y = F.interpolate(y, size=x.shape[2:], mode="bilinear")
        one, other = (x, y) if first else (y, x)
        return last(torch.cat([one, other], 1) if how == "cat" else one + other)

    return Calls(join, down, nn.Conv2d(6 if how == "cat" else 3, 2, 3, padding=1))


def test_joins_of_maps_that_are_cut_differently() -> None:
    sweep(_joined(), lambda _: images(3, largest=50, ties=True), 150)


@st.composite
def _chains(draw: st.DrawFn) -> nn.Module:
    kernel = st.integers(1, 5)
    one_of = {
        "conv": lambda: nn.Conv2d(3, 3, draw(kernel), draw(st.integers(1, 3)), draw(st.integers(0, 2))),
        "transposed": lambda: nn.ConvTranspose2d(3, 3, draw(kernel), draw(st.integers(1, 3))),
        "pool": lambda: nn.MaxPool2d(3, 2, 1),
        "average": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "norm": lambda: nn.GroupNorm(3, 3),
        "crop": lambda: nn.ZeroPad2d((-1, 2, 1, -1)),
        "up": lambda: nn.Upsample(scale_factor=1.5),
    }
    names = draw(st.lists(st.sampled_from(sorted(one_of)), min_size=2, max_size=5))
    return nn.Sequential(*(one_of[name]() for name in names)).double()


def test_chains() -> None:
    sweep(_chains(), lambda _: images(3, largest=60, least=12), 200)
