"""Networks as people write them run without data, or are refused in one sentence with layer and line."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.costs.profile import profile
from lartpc_ds.costs.stages import cut_rates
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.exact.trace.compiled import uncompiled
from lartpc_ds.exact.trace.dry_run import built_without_memory, dry_run, shadow_of
from lartpc_ds.layout import Layout

IMAGE = (2, 23, 19)


class Front(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor] | None = None, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.layer, self.then = nn.Conv2d(2, 4, 3, padding=1), layer or nn.Identity(), then

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.stem(x))
        return x if self.then is None else self.then(x)


class Head(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.pool, self.linear, self.then = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3), then

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x).flatten(1)
        return self.linear(x if self.then is None else self.then(x))


def _everywhere(front: Front, head: Head) -> None:
    """Plan tiles, lean norms, strips and stages."""
    model = nn.Sequential(front, head)
    plan_tiles(model, Layout(rows=2, cols=2), IMAGE)
    plan_tiles(model, Layout(), IMAGE, lean_norm=True)
    plan_strips(model, 2, "1", IMAGE)
    profile(list(model.named_children()), (2, *IMAGE), "fp32", 16, cut_rates())


def _blurred(x: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = torch.outer(line, line)
    return F.conv2d(x, (kernel / kernel.sum()).repeat(4, 1, 1, 1), padding=1, groups=4)


CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tensor": lambda x: (x - torch.tensor([0.5])) / torch.tensor(2.0, dtype=torch.float64).float(),
    "full": lambda x: x * torch.full((1, 4, 1, 1), 2.0) + torch.ones(4, 1, 1),
    "ranges": lambda x: x * torch.arange(4).view(4, 1, 1) + torch.linspace(0, 1, 4)[:, None, None],
    "eye": lambda x: F.conv2d(x, torch.eye(4).view(4, 4, 1, 1)),
    "blur": _blurred,
    "read": lambda x: x * torch.linspace(0, 1, 4).tolist()[2] if torch.tensor([True]).all() else x,
    "compiled": torch.compile(lambda x: x * torch.sigmoid(x), backend="eager"),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_without_a_device_are_planned(name: str) -> None:
    _everywhere(Front(CONSTANTS[name]), Head())


def _written(x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 4)
    y[:, 0] = x[:, 0]
    return y.clone()


AFTER_THE_POOL: dict[str, Callable[[Tensor], Tensor]] = {
    "filled from a map": _written,
    "count of elements": lambda x: x / int(torch.tensor(x.shape[1:]).prod()),
    "scattered": lambda x: torch.zeros(len(x), 4).scatter_(1, torch.zeros(len(x), 4, dtype=torch.long), x),
    "to the host": lambda x: x.cpu() * 2,
}


@pytest.mark.parametrize("name", AFTER_THE_POOL)
def test_constants_meet_whole_maps(name: str) -> None:
    _everywhere(Front(), Head(AFTER_THE_POOL[name]))


def test_a_mask_of_known_values_chooses_a_known_number() -> None:
    head = Head(lambda x: x + x[:, torch.tensor([True, False, True, False])].sum())
    assert plan_tiles(nn.Sequential(Front(), head), Layout(rows=2, cols=2), IMAGE).output is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "norm",
    [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm],
    ids=["weight", "weight, as a parametrization"],
)
def test_weights_that_are_computed_are_planned(norm: Callable[[nn.Module], nn.Module]) -> None:
    _everywhere(Front(layer=norm(nn.Conv2d(4, 4, 3, padding=1))), Head())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_weights_that_change_in_every_pass_are_planned_everywhere_but_in_strips() -> None:
    front = Front(layer=nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)))
    with pytest.raises(
        UserError, match=r"^0: changes layer\.weight_u, layer\.weight_v in every forward pass, and strips"
    ):
        _everywhere(front, Head())
    plan_tiles(nn.Sequential(front, Head()), Layout(rows=2, cols=2), IMAGE)
    profile([("front", front), ("head", Head())], (2, *IMAGE), "fp32", 16, cut_rates())


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_modules_run_as_they_were_written(whole: bool) -> None:
    layer = torch.compile(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), backend="eager")
    assert isinstance(layer, nn.Module)
    model: Any = nn.Sequential(Front(layer=layer), Head())
    plan = plan_tiles(torch.compile(model, backend="eager") if whole else model, Layout(rows=2, cols=2), IMAGE)
    assert [call.name for call in plan.traces[0] if call.is_cut].count("relu") == 1


def test_a_converted_network_runs_compiled_parts_as_they_were_written() -> None:
    front = Front(torch.compile(lambda x: x * torch.sigmoid(x), backend="eager"))
    model, images = nn.Sequential(front, nn.Dropout(0.0), Head()), torch.randn(2, *IMAGE)
    with uncompiled():
        wanted = model(images)
    plan = plan_tiles(model, Layout(), IMAGE)
    alone = Tiles(1, 1, Alone(), Alone(), Alone())
    assert torch.equal(convert(model, plan, alone)(images), wanted)


UNKNOWN: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x / x.max().item(),
    "tolist": lambda x: x * x.tolist()[0][0],
    "bool": lambda x: -x if x.mean() > 0 else x,
    "int": lambda x: x * int(x.sum()),
    "numpy": lambda x: x + float(x.numpy().sum()),
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "where": lambda x: x * len(torch.where(x > 0)[0]),
    "nonzero": lambda x: x * len(x.nonzero()),
    "masked_select": lambda x: x * x.masked_select(x > 0).mean(),
    "mask": lambda x: x * x[x > 0].mean(),
    "unique": lambda x: x * x.unique().sum(),
    "bincount": lambda x: x * torch.bincount(x.argmax(1)).sum(),
    "repeated": lambda x: x * x.repeat_interleave(x.argmax(1), 0).sum(),
    "a constant that was written": lambda x: x * torch.zeros(3).add_(x.sum()).sum().item(),
}


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_needs_numbers_is_one_sentence(name: str, tiles: int) -> None:
    model = nn.Sequential(Front(), Head(UNKNOWN[name]))
    with pytest.raises(UserError, match=r"^1 \(test_dry_run\.py:\d+\): [\w ]+ needs the numbers of a map"):
        plan_tiles(model, Layout(rows=tiles), IMAGE)


def test_what_needs_numbers_is_one_sentence_in_a_profile() -> None:
    blocks = [("front", Front()), ("head", Head(UNKNOWN["where"]))]
    with pytest.raises(UserError, match=r"block head: .*\(test_dry_run\.py:\d+\): nonzero needs the numbers of a map"):
        profile(blocks, (2, *IMAGE), "fp32", 16, cut_rates())


ERRORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "missing key": (lambda x: {}["a"], "KeyError: 'a'"),
    "missing attribute": (lambda x: x.nosuch, "AttributeError: 'Tensor' object has no attribute 'nosuch'"),
    "wrong rank": (lambda x: F.conv2d(x, torch.zeros(4, 4, 1, 1)), "Expected 3D .* or 4D"),
    "wrong rank of weights": (lambda x: F.conv2d(x[..., None, None], torch.zeros(4, 4, 3)), "tuple index out of range"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_model_is_one_sentence(name: str) -> None:
    function, told = ERRORS[name]
    with pytest.raises(UserError, match=rf"^1 \(test_dry_run\.py:\d+\): .*{told}"):
        plan_tiles(nn.Sequential(Front(), Head(function)), Layout(), IMAGE)


def test_compiled_code_is_refused_where_calls_are_followed() -> None:
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(F.silu)
    front = Front(scripted)
    with pytest.raises(UserError, match=r"^0 \(test_dry_run\.py:\d+\): calls compiled code \(torch\.jit\.script"):
        plan_tiles(nn.Sequential(front, Head()), Layout(rows=2), IMAGE)
    with pytest.raises(UserError, match="calls compiled code"):
        plan_tiles(nn.Sequential(front, Head()), Layout(), IMAGE, lean_norm=True)
    with pytest.raises(UserError, match="calls compiled code"):
        plan_strips(nn.Sequential(front, Head()), 2, "1", IMAGE)
    assert plan_tiles(nn.Sequential(front, Head()), Layout(), IMAGE).image == IMAGE


def test_lazy_layers_and_what_cannot_be_copied_are_refused() -> None:
    with pytest.raises(UserError, match="has a lazy layer"):
        shadow_of(nn.Sequential(nn.LazyConv2d(4, 3)))
    model = Front()
    model.lock = threading.Lock()
    with pytest.raises(UserError, match=r"model Front cannot be copied.*cannot pickle"):
        shadow_of(model)


def test_a_copy_shares_what_the_model_shares_and_keeps_counts() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    model[2].weight = model[0].weight
    model[1].num_batches_tracked.add_(3)
    shadow = shadow_of(model)
    assert shadow[0].weight is shadow[2].weight and shadow[0].weight.is_meta
    assert shadow[1].num_batches_tracked.item() == 3
    assert not model[0].weight.is_meta


class Deepening(nn.Module):
    """Stochastic depth, as many networks write it."""

    def __init__(self) -> None:
        super().__init__()
        strengths = [one.item() for one in torch.linspace(0, 0.1, 3)]
        self.layers = nn.Sequential(*(nn.Dropout(strength) for strength in strengths))
        self.scale = nn.Parameter(torch.ones(1) * strengths[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale


def test_a_network_that_reads_constants_is_built_without_memory() -> None:
    model = built_without_memory(Deepening)
    assert model.scale.is_meta
    assert [layer.p for layer in model.layers] == pytest.approx([0, 0.05, 0.1])


def test_our_own_assertions_are_no_error_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from lartpc_ds.exact.grid.rows import Rows
    from lartpc_ds.exact.memory.strips import Strips

    with pytest.raises(AssertionError), dry_run(nn.Identity()):
        Strips().mark_rows(torch.empty(2, 2, 3, 3), Rows.of(2, 9, (0, 9)))
