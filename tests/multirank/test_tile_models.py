"""Whole networks at odd sizes, unmodified, on grids against one device."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Clock, Tiles
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests import vision
from tests.tile_cases import GRIDS
from tests.tile_parity import assert_tiles_agree, image, on_threads
from tests.unet_variants import UNet

SIZE = (333, 517)


def _ready(model: nn.Module) -> nn.Module:
    """In float64, and with every parameter of consequence: some start at zero, or nearly."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.detach().abs().max() < 1e-3:
            parameter.data = torch.rand(parameter.shape, generator=generator) * 0.2
    return model.double()


def _timm(name: str, **options: object) -> nn.Module:
    assert vision.library is None or vision.library.ns == "torchvision"
    import timm

    torch.manual_seed(2)
    return timm.create_model(name, pretrained=False, in_chans=2, num_classes=5, **options)


def _torchvision(name: str) -> nn.Module:
    assert vision.library is None or vision.library.ns == "torchvision"
    import torchvision

    torch.manual_seed(2)
    return torchvision.models.get_model(name, weights=None, num_classes=5)


def _ours(name: str, norm: str, width: int) -> nn.Module:
    torch.manual_seed(2)
    return build_model(name, planes=2, num_classes=5, width=width, norm=norm)


def test_ours_on_every_grid() -> None:
    model = _ready(_ours("resnet18", "batch", 4))
    for rows, cols in GRIDS:
        assert_tiles_agree(model, image((1, 2, *SIZE)), rows, cols)


@pytest.mark.parametrize(
    ("name", "norm", "width"),
    [("resnet50", "batch", 4), ("resnet50", "group", 4), ("convnext", "layer", 4), ("convnext", "batch", 4)],
)
def test_ours(name: str, norm: str, width: int) -> None:
    # two events: of one, a batch norm before a global pool leaves nothing but its bias
    assert_tiles_agree(_ready(_ours(name, norm, width)), image((2, 2, *SIZE)), 2, 2)


@pytest.mark.parametrize("fit", ["interpolate", "pad", "ceil"])
def test_a_u_net_with_an_output_a_pixel(fit: str) -> None:
    torch.manual_seed(1)
    size = SIZE if fit != "ceil" else (334, 518)  # whose third map is one pixel too large
    plan = assert_tiles_agree(UNet(2, 3, fit=fit).double(), image((1, 2, *size)), 3, 2)
    assert plan.output is not None and plan.output.bounds[0][-1] == size[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet26d", {}),
        ("mobilenetv3_small_050", {}),  # squeeze and excite, hard swish
        ("tf_efficientnet_b0", {"drop_path_rate": 0.0}),  # pads as TensorFlow, by the size of its input
        ("convnext_atto", {"drop_path_rate": 0.0}),
        ("regnety_002", {}),
        ("convnextv2_atto", {"depths": (1, 1, 1, 1), "drop_path_rate": 0.0}),  # a norm over all pixels
    ],
)
def test_timm(name: str, options: dict[str, object]) -> None:
    assert_tiles_agree(_ready(_timm(name, **options)), image((1, 2, 161, 197)), 2, 2)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121"])
def test_torchvision(name: str) -> None:
    model = _torchvision(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert_tiles_agree(_ready(model), image((1, 3, 129, 161)), 1, 2)


@pytest.mark.parametrize("block", ["layer2_1", "head"])
def test_a_named_block_is_gathered(block: str) -> None:
    plan = assert_tiles_agree(_ready(_ours("resnet18", "batch", 4)), image((2, 2, 123, 157)), 2, 2, block)
    assert plan.gathered_at == [block] and plan.output is None


def test_auto_leaves_the_tiles_before_they_are_too_thin() -> None:
    model = _ready(_ours("resnet18", "batch", 4))
    with pytest.raises(UserError, match="a tile is empty"):
        plan_tiles(model, Layout(rows=3), (2, 33, 77), "never")
    assert len(assert_tiles_agree(model, image((2, 2, 33, 77)), 3, 1, "auto").gathered_at) == 1


class Decoder(nn.Module):
    """Takes two maps of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = nn.Conv2d(2, 2, 3, 2, 1), Joined()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(x), skip=x)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))


def test_all_inputs_of_a_block_are_gathered() -> None:
    plan = assert_tiles_agree(Decoder().double(), image((2, 2, 23, 19)), 2, 2, "last")
    assert plan.gathered_at == ["last"] and plan.output is None


class Normalised(nn.Module):
    """With constants that name no device, and weights that are computed in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        weighed = nn.utils.weight_norm(nn.Conv2d(2, 4, 3, stride=2, padding=1))
        weighed.weight = weighed.weight.detach()  # torch copies no tensor that was computed
        self.convs = nn.Sequential(weighed, nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        strengths = torch.linspace(0.5, 1, 3, dtype=torch.float64).tolist()
        x = (x - torch.tensor([0.5, 0.1])[:, None, None]) / torch.full((1,), 2.0, dtype=torch.float64)
        return self.convs(x) * strengths[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_constants_and_computed_weights() -> None:
    torch.manual_seed(1)
    assert_tiles_agree(Normalised().double(), image((2, 2, 37, 45)), 2, 2)


def _masks(model: nn.Module, rows: int, cols: int, clock: Clock) -> Tensor:
    """The output of `model` in training on a grid, put together from its tiles."""
    x, layout = image((3, 2, 37, 45)), Layout(rows=rows, cols=cols)
    plan = plan_tiles(model, layout, (2, 37, 45), "never")

    def rank(tiles: Tiles) -> Tensor:
        (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)
        return convert(copy.deepcopy(model), plan, tiles)(x[:, :, top:bottom, left:right]).detach()

    parts = on_threads(layout, rank, clock=clock)
    if plan.output is None:
        assert all(torch.allclose(part, parts[0], rtol=0, atol=1e-12) for part in parts)
        return parts[0]
    return torch.cat([torch.cat(parts[row * cols : (row + 1) * cols], 3) for row in range(rows)], 2)


def _drop_path() -> nn.Module:
    assert vision.library is None or vision.library.ns == "torchvision"
    from timm.layers import DropPath

    return DropPath(0.5)


def _stochastic_depth() -> nn.Module:
    assert vision.library is None or vision.library.ns == "torchvision"
    from torchvision.ops import StochasticDepth

    return StochasticDepth(0.5, "row")


DROPS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.4),
    "dropout in place": lambda: nn.Dropout(0.4, inplace=True),
    "dropout2d": lambda: nn.Dropout2d(0.5),
    "DropPath": _drop_path,
    "StochasticDepth": _stochastic_depth,
    "in the head": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 8)),
}


@pytest.mark.parametrize("name", DROPS)
def test_masks_are_the_same_on_every_grid_and_others_in_every_step(name: str) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), DROPS[name]()).double()
    steps = []
    for step in range(4):
        reference = _masks(model, 1, 1, Clock(seed=3, step=step))
        steps.append(reference)
        for rows, cols in [(2, 1), (2, 2), (3, 2)]:
            assert torch.allclose(_masks(model, rows, cols, Clock(3, step)), reference, rtol=0, atol=1e-12)
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(steps))
    for others in ([Clock(seed) for seed in range(10, 16)], [Clock(3, micro_batch=one) for one in range(1, 7)]):
        # three coins often fall alike, but not six times
        assert any(not torch.equal(_masks(model, 1, 1, other), steps[0]) for other in others)
    assert torch.equal(_masks(model, 1, 1, Clock(3, 0)), steps[0])
