"""Networks that compute only what is lit have the numbers of a plain run, whatever is lit, wherever whole maps begin.

Sizes are no multiples of the patches, and planes, widths and depths are small.
"""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests import vision
from tests.lit_parity import ALONE, KINDS, assert_lit_agrees, assert_same_numbers, events, lit, precise, ready
from tests.tile_parity import TOLERANCE, whole

SIZE = (333, 517)
SMALL = (77, 101)


def network(name: str, norm: str, *, width: int = 4, stem_stride: tuple[int, int] | None = None) -> nn.Module:
    torch.manual_seed(3)
    return ready(build_model(name, planes=2, num_classes=3, width=width, norm=norm, stem_stride=stem_stride))


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_whole_resnet(name: str, norm: str) -> None:
    model, x = network(name, norm), events(("track", "edge"), 2, *SIZE)
    plan = assert_lit_agrees(model, x, 32, plain=precise(model), sparse=norm == "batch")
    assert plan.covered == len(plan.blocks)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_whole_convnext(norm: str) -> None:
    plan = assert_lit_agrees(network("convnext", norm), events(("far", "everywhere", "edge"), 2, 165, 261), 32)
    assert plan.covered == len(plan.blocks)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_any_event_alone_with_recomputation_or_without(norm: str) -> None:
    # of one small event, a batch norm leaves nothing of the last maps of a deep network
    model = network("resnet18", norm)
    plan = plan_lit(model, 32, "layer3_0", (2, *SMALL))
    for kind in KINDS:
        x = events((kind,), 2, *SMALL)
        reference = whole(model, x)
        for recomputed in (False, True):
            assert_same_numbers(whole(lit(model, plan, recomputed=recomputed), x), reference, x)


def test_only_micro_batches_that_would_not_fit_run_their_blocks_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = network("resnet18", "group"), (2, *SMALL)
    memory = MemoryConfig(lit_block=32, recompute="auto")
    plan, net = plan_lit(model, 32, "layer3_0", image), copy.deepcopy(model)
    apply(net, memory, plan_tiles(net, Layout(), image), ALONE, None, plan)
    runs: list[None] = []
    next(net.get_submodule("layer1_0").children()).register_forward_hook(lambda *_: runs.append(None))
    dark, bright = events(("corner",), 2, *SMALL), events(("everywhere",), 2, *SMALL)
    keeps = [plan.kept_bytes(plan.shares((x != 0).any(1).numpy())) for x in (dark, bright)]
    monkeypatch.setattr("lartpc_ds.exact.memory.spare.free_bytes", lambda device: 1.5 * sum(keeps) / 2)
    for x, times in ((dark, 1), (bright, 2), (dark, 1)):
        runs.clear()
        assert_same_numbers(whole(net, x), whole(model, x), x)
        assert len(runs) == times


def test_a_batch_may_run_before_another_one_goes_back() -> None:
    model = network("resnet18", "group")
    net = lit(model, plan_lit(model, 32, "never", (2, *SMALL)), recomputed=True)
    first, second = events(("track", "edge"), 2, *SMALL), events(("corner", "far"), 2, *SMALL)
    for one in (model, net):
        (one(first).square().sum() + one(second).sum()).backward()
    for (name, weight), other in zip(model.named_parameters(), net.parameters(), strict=True):
        assert weight.grad is not None and other.grad is not None
        assert (weight.grad - other.grad).abs().max() <= TOLERANCE * weight.grad.abs().max(), name


def test_a_pixel_of_a_sparse_image_may_come_in_parts() -> None:
    model = network("resnet18", "batch").eval()
    x = events(("track", "edge"), 2, *SMALL)
    at = x.to_sparse()
    parts = torch.sparse_coo_tensor(
        at.indices().repeat(1, 2), torch.cat([at.values() * 0.75, at.values() * 0.25]), x.shape, check_invariants=True
    )
    net = lit(model, plan_lit(model, 32, "never", (2, *SMALL)))
    assert (net(parts) - model(x)).abs().max() <= TOLERANCE * model(x).abs().max()


def test_auto_runs_lit_what_has_few_lit_pixels_only() -> None:
    model = network("resnet18", "batch", width=16)
    plan = plan_lit(model, 32, "auto", (2, *SIZE))
    dark, bright = ((events((kind,), 2, *SIZE) != 0).any(1).numpy() for kind in ("empty", "everywhere"))
    assert plan.until_of(dark) is None and plan.until_of(bright) == "stem"
    assert set(plan.shares(dark)) == {0.0} and set(plan.shares(bright)) == {1.0}


@pytest.mark.parametrize(("pixels", "until"), [(16, "auto"), (32, "layer2_0"), (64, "auto"), (64, "pool")])
def test_any_patch_and_until(pixels: int, until: str) -> None:
    assert_lit_agrees(network("resnet18", "batch"), events(("track", "empty", "edge"), 2, *SMALL), pixels, until)


@pytest.mark.parametrize("pixels", [16, 32])
def test_oblong_patches(pixels: int) -> None:
    model = network("resnet18", "batch", stem_stride=(2, 8))
    plan = assert_lit_agrees(model, events(("track", "far"), 2, 97, 517), pixels, "layer4_0")
    assert (plan.rows.patch, plan.cols.patch) == (pixels, 4 * pixels)


def test_evaluation_and_frozen_norms() -> None:
    model = network("resnet18", "batch")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = events(("track", "edge"), 2, *SMALL)
    assert_lit_agrees(model.eval(), x, 32)
    model.train()
    model.stem.eval()  # type: ignore[union-attr]
    assert_lit_agrees(model, x, 32)


def _double(channels: int, out: int) -> nn.Sequential:
    first, second = nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.Conv2d(out, out, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(out), nn.ReLU(inplace=True), second, nn.GroupNorm(2, out), nn.GELU())


class UNet(nn.Module):
    """A score a pixel; maps are halved and rounded up, so that those that come up again are cropped by constants."""

    def __init__(self, up: str) -> None:
        super().__init__()
        self.first, self.second, self.third = _double(2, 4), _double(4, 6), _double(6, 8)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        if up == "nearest":
            self.up2: nn.Module = nn.Upsample(scale_factor=2)
        else:
            self.up2 = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.left2, self.left1, self.head = _double(14, 6), _double(8, 4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(self.pool(first))
        y = self.left2(torch.cat([second, F.pad(self.up2(self.third(self.pool(second))), (0, -1, 0, -1))], 1))
        y = self.left1(torch.cat([first, F.pad(self.up1(y), (0, -1, 0, -1))], 1))
        scores: Tensor = self.head(y)
        return scores


@pytest.mark.parametrize("up", ["nearest", "transposed"])
def test_a_u_net_with_an_output_a_pixel(up: str) -> None:
    torch.manual_seed(1)
    model = ready(nn.Sequential(OrderedDict(unet=UNet(up), scores=nn.LogSoftmax(1))))
    assert_lit_agrees(model, events(("track", "empty", "corner"), 2, 97, 141), 16)


@pytest.mark.parametrize(("name", "options"), [("regnety_002", {}), ("convnext_atto", {"depths": (1, 1, 1, 1)})])
def test_timm(name: str, options: dict[str, object]) -> None:
    assert vision.library is None or vision.library.ns == "torchvision"
    import timm

    torch.manual_seed(2)
    net = timm.create_model(name, pretrained=False, in_chans=2, num_classes=5, **options)
    assert_lit_agrees(ready(nn.Sequential(OrderedDict(net=net))), events(("track", "everywhere"), 2, 161, 197), 32)


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_lean_norms(norm: str, recompute: str) -> None:
    x = events(("track", "edge"), 2, *SMALL)
    model, image = network("resnet18", norm), (2, *SMALL)
    memory = MemoryConfig.model_validate({"lit_block": 32, "lean_norm": True, "recompute": recompute})
    lean = copy.deepcopy(model)
    tiles = plan_tiles(lean, Layout(), image, lean_norm=True)
    assert norm == "layer" or tiles.lean_norms
    apply(lean, memory, tiles, ALONE, None, plan_lit(lean, 32, "layer3_0", image))
    assert_same_numbers(whole(lean, x), whole(precise(model), x), x)
