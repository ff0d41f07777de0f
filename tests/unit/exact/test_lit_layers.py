"""Random stacks of layers on random lit pixels: exact, or refused when they are planned, never anything else."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.errors import UserError
from lartpc_ds.models.norms import PixelLayerNorm
from tests.examples import examples
from tests.lit_parity import assert_lit_agrees, events, ready
from tests.tile_cases import every_window_reads
from tests.tile_parity import image

CHANNELS = 4
EPS = 0.1  # of a nearly constant map, a norm with a small eps would leave nothing but rounding


class Called(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def _over_channels(x: Tensor, linear: nn.Module) -> Tensor:
    y: Tensor = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return y


def _excited(x: Tensor, linear: nn.Module) -> Tensor:
    return x * linear(x.mean((2, 3))).sigmoid()[:, :, None, None]


def _pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    kernel, dilation, bias = draw(_pairs(1, 5)), draw(_pairs(1, 3)), draw(st.booleans())
    groups, same = draw(st.sampled_from([1, 1, 2, 4])), draw(st.integers(0, 3)) == 0
    stride = (1, 1) if same else draw(_pairs(1, 4))
    padding = "same" if same else draw(_pairs(0, 3))
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups, bias)


@st.composite
def transposed(draw: st.DrawFn) -> nn.Module:
    kernel, stride, padding = draw(_pairs(1, 4)), draw(_pairs(1, 3)), draw(_pairs(0, 2))
    dilation, groups = draw(_pairs(1, 2)), draw(st.sampled_from([1, 2]))
    extra = tuple(draw(st.integers(0, max(step, spread) - 1)) for step, spread in zip(stride, dilation, strict=True))
    return nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, stride, padding, extra, groups, True, dilation)


@st.composite
def pools(draw: st.DrawFn) -> nn.Module:
    kernel, stride, ceil_mode = draw(_pairs(1, 4)), draw(st.none() | _pairs(1, 4)), draw(st.booleans())
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, stride, padding, draw(_pairs(1, 2)), ceil_mode=ceil_mode)
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode, draw(st.booleans()), draw(st.sampled_from([None, 3])))


@st.composite
def pads(draw: st.DrawFn) -> nn.Module:
    around, value = (*draw(_pairs(-3, 4)), *draw(_pairs(-3, 4))), draw(st.sampled_from([0.0, 0.7]))
    return Called(lambda x: F.pad(x, around, value=value))


@st.composite
def norms(draw: st.DrawFn) -> nn.Module:
    kind = draw(st.sampled_from(["batch", "frozen", "group", "instance", "layer"]))
    if kind in ("batch", "frozen"):
        norm: nn.Module = nn.BatchNorm2d(CHANNELS, EPS)
        norm.running_mean += 0.3  # type: ignore[operator]
        return norm.train(kind == "batch")
    if kind == "layer":
        return PixelLayerNorm(CHANNELS, EPS)
    return nn.GroupNorm(2, CHANNELS, EPS) if kind == "group" else nn.InstanceNorm2d(CHANNELS, EPS, affine=True)


@st.composite
def joins(draw: st.DrawFn) -> nn.Module:
    kernel, dilation = 2 * draw(st.integers(0, 2)) + 1, draw(st.integers(1, 2))
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2 * dilation, dilation=dilation)
    pool = nn.MaxPool2d(3, 1, 1)
    to_few = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
    return draw(
        st.sampled_from(
            [
                Called(lambda x, conv: x + conv(x), conv),
                Called(lambda x, conv: conv(x).add_(x), conv),
                Called(lambda x, conv, few: few(torch.cat([x, conv(x)], 1)), conv, to_few),
                Called(lambda x, conv, few, pool: few(torch.cat([pool(x), conv(x)], 1)), conv, to_few, pool),
                Called(lambda x, conv, pool: torch.maximum(pool(x), conv(x)) * x, conv, pool),
            ]
        )
    )


def pointwise() -> st.SearchStrategy[nn.Module]:
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.ReLU(inplace=True),
        nn.GELU,
        nn.Softplus,
        lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
        lambda: Called(_over_channels, nn.Linear(CHANNELS, CHANNELS)),
        lambda: Called(_excited, nn.Linear(CHANNELS, CHANNELS)),
        lambda: nn.PReLU(CHANNELS),
    ]
    return st.sampled_from(makers).map(lambda maker: maker())


LAYERS = st.one_of(convolutions(), transposed(), pools(), pads(), norms(), joins(), pointwise())


@st.composite
def lit_images(draw: st.DrawFn) -> Tensor:
    """Of 1 to 3 events with any few pixels lit, or all."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 50)), draw(st.integers(1, 50)))
    at = st.tuples(*(st.integers(0, size - 1) for size in shape))
    lit = torch.zeros(shape, dtype=torch.bool)
    for event, row, col in draw(st.lists(at, max_size=6)):
        lit[event, row, col] = True
    lit[0] |= draw(st.integers(0, 5)) == 0
    return image((shape[0], CHANNELS, *shape[1:])) * lit[:, None]


def runs(model: nn.Sequential, x: Tensor) -> bool:
    """Is every layer one that torch itself can run, and run right?"""
    try:
        for layer in model:
            if isinstance(layer, nn.MaxPool2d) and not every_window_reads(layer, x):
                return False
            if isinstance(layer, nn.InstanceNorm2d) and len(x) == 1:
                return False  # torch 2.13 makes a wrong gradient of it if a permuted map reads its result
            x = layer(x)
            if x.numel() == 0 or x.numel() > 400_000:
                return False
        x.sum().backward()  # which fails if a ReLU in place follows another
    except (RuntimeError, ValueError):
        return False
    model.zero_grad()
    return True


REFUSALS = ("which does not divide patches", "leaves no pixel", "joins a map with one that more of the image has")


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        Called(lambda x: F.pad(x, (0, -3, -2, -1))),
        Called(lambda x: F.pad(x, (1, 2, 2, 2), value=0.1)),
        nn.Sequential(nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2, bias=False), nn.Softplus()),
        nn.Upsample(scale_factor=(2, 3)),
        nn.Identity(),
    ],
    ids=["max", "average", "crop", "pad", "transposed", "nearest", "none"],
)
def test_what_is_outside_the_map_makes_no_nan(layer: nn.Module) -> None:
    """A logarithm or an inverse of the zeros that one could keep there would spoil every sum and gradient."""
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS, EPS)
    logarithm = Called(lambda x: x.log() + x.rsqrt() / x.sum(1, keepdim=True))
    model = nn.Sequential(conv, nn.Softplus(), layer, logarithm, norm, copy.deepcopy(conv)).double()
    assert_lit_agrees(model, events(("track", "empty", "corner"), CHANNELS, 37, 41), 8)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 4), ((2, 5), (1, 2))])
def test_average_pools_divide_by_the_pixels_of_their_place(kernel: int, stride: int, counts: bool) -> None:
    pool = nn.AvgPool2d(kernel, stride, 1, ceil_mode=True, count_include_pad=counts)
    model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), pool).double()
    assert_lit_agrees(model, events(("track", "empty"), CHANNELS, 39, 44), 8)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_functions_may_work_in_place_on_the_result_of_any_convolution(stride: int, bias: bool) -> None:
    conv, relu = nn.Conv2d(CHANNELS, CHANNELS, 3, stride, 1, bias=bias), nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), conv, relu)).double()
    assert_lit_agrees(model, events(("track", "empty"), CHANNELS, 37, 41), 8)


def test_whole_images_of_positive_pixels_may_begin_with_a_logarithm() -> None:
    model = nn.Sequential(Called(lambda x, conv: conv(x.log()), nn.Conv2d(CHANNELS, 2, 3)), nn.GroupNorm(1, 2)).double()
    assert_lit_agrees(model, image((1, CHANNELS, 21, 19)).abs(), 8)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(examples(1000), suppress_health_check=HealthCheck)
@given(st.lists(LAYERS, min_size=2, max_size=6), lit_images(), st.sampled_from([4, 8, 12, 16]), st.booleans())
def test_any_stack_is_exact_or_refused(stack: list[nn.Module], x: Tensor, pixels: int, pooled: bool) -> None:
    torch.manual_seed(1)
    head = (
        nn.Sequential(nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(CHANNELS, 3))
        if pooled
        else nn.Identity()
    )
    stem = nn.Conv2d(CHANNELS, CHANNELS, 1)  # the first layer of the stack may change its input
    named = {"stem": stem, **{f"block{at}": layer for at, layer in enumerate(stack)}, "rest": head}
    model = ready(nn.Sequential(OrderedDict(named)))  # without a bias, a norm of a dark map gives nothing but rounding
    assume(runs(model, x))
    try:
        assert_lit_agrees(model, x, pixels)
    except UserError as refusal:
        assert any(part in str(refusal) for part in REFUSALS), refusal
