"""A second run of a block starts from the state of the first and leaves none: buffers, counters, lists, caches."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.memory.recompute import recompute
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.exact.trace.module_state import ModuleState
from lartpc_ds.layout import Layout
from tests.tile_parity import assert_tiles_agree, image, on_threads

IMAGE = (2, 16, 11)


class _Does(nn.Module):
    """A convolution, then a function that may use and change what the module holds."""

    def __init__(self, function: Callable[["_Does", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.function = function
        self.calls, self.list, self.last = 1, [1.0], torch.ones(())
        self.register_buffer("mean", torch.full((4,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self, self.conv(x))
        return y.tanh() * y


def _counts(module: _Does, y: Tensor) -> Tensor:
    module.calls += 1
    return y * module.calls


def _appends(module: _Does, y: Tensor) -> Tensor:
    y = y * sum(module.list)
    module.list.append(2.0)
    return y


def _writes_data(module: _Does, y: Tensor) -> Tensor:
    z = y * module.mean.clone()[:, None, None]
    module.mean.data.mul_(0.9).add_(0.1)
    return z


def _replaces(module: _Does, y: Tensor) -> Tensor:
    z = y * module.mean[:, None, None]
    module.mean = module.mean * 0.9 + 0.1
    return z


def _remembers(module: _Does, y: Tensor) -> Tensor:
    y = y * module.last
    module.last = (module.conv.weight * 2).mean()
    module.last = module.last.detach()
    return y


def _makes_an_attribute(module: _Does, y: Tensor) -> Tensor:
    module.made = getattr(module, "made", 0) + 1
    return y * module.made


def _with_batch_norm(function: Callable[[_Does, Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(_Does(function), nn.BatchNorm2d(4))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Conv2d(2, 4, 3, padding=1)),
    "spectral norm, in a block": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)), nn.Tanh()),
    "spectral norm, the old one": lambda: nn.Sequential(spectral_norm(nn.Conv2d(2, 4, 3)), nn.Tanh()),
    "spectral norm, the old one, as a block": lambda: spectral_norm(nn.Conv2d(2, 4, 3)),
    "batch norm that counts": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Tanh()),
    "counter": lambda: _with_batch_norm(_counts),
    "list": lambda: _with_batch_norm(_appends),
    "written to data": lambda: _Does(_writes_data),
    "replaced": lambda: _Does(_replaces),
    "remembered": lambda: _Does(_remembers),
    "attribute made": lambda: _Does(_makes_an_attribute),
}


def _trained(network: nn.Module, layout: Layout, *, recomputed: bool) -> list[dict[str, Tensor]]:
    """Two steps of two micro-batches each, both forward passes first, as a pipeline does; by rank."""
    plan = plan_tiles(network, layout, IMAGE)

    def rank(tiles: Tiles) -> dict[str, Tensor]:
        model = convert(copy.deepcopy(network), plan, tiles)
        if recomputed:
            recompute(model, tiles)
        (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)
        for step in range(2):
            images = [image((2, *IMAGE), 10 * step + one)[:, :, top:bottom, left:right] for one in range(2)]
            outputs = [model(one) for one in images]
            for output in outputs:
                output.square().sum().backward()
        return {
            **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            **dict(model.named_buffers()),
            "calls": torch.tensor([getattr(module, "calls", 0) for module in model.modules()]),
        }

    return on_threads(layout, rank)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_recomputation_changes_no_number(name: str, rows: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(BLOCKS[name](), nn.Sequential(nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1))).double()
    plain, recomputed = (_trained(network, Layout(rows=rows), recomputed=one) for one in (False, True))
    for one, other in zip(plain, recomputed, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(other[key], value), key


def _steps_in_place(module: _Does, y: Tensor) -> Tensor:
    y = y * module.last
    module.last.mul_(2)
    return y


def test_a_tensor_that_is_no_buffer_and_changes_in_place_is_refused() -> None:
    network = nn.Sequential(nn.Sequential(_Does(_steps_in_place)), nn.Conv2d(4, 1, 3)).double()
    with pytest.raises(UserError, match=r"block 0 changes its attribute 0\.last in place.*register_buffer"):
        _trained(network, Layout(), recomputed=True)


def test_a_large_buffer_that_another_changes_between_the_runs_is_refused() -> None:
    network = nn.Sequential(_Does(lambda module, y: y * module.table[0]), nn.Conv2d(4, 1, 3))
    network[0].register_buffer("table", torch.ones(1 << 15))
    plan = plan_tiles(network, Layout(), IMAGE)

    def rank(tiles: Tiles) -> None:
        recompute(convert(network, plan, tiles), tiles)
        y = network(image((1, *IMAGE)).float())
        network[0].table.mul_(2)
        y.sum().backward()

    with pytest.raises(UserError, match=r"the buffer table of block 0 was changed between its run and its second"):
        on_threads(Layout(), rank)


def test_of_large_buffers_that_a_run_does_not_change_no_copy_is_kept() -> None:
    block = nn.Sequential(nn.BatchNorm2d(4), _Does(lambda module, y: y))
    block[1].register_buffer("table", torch.zeros(54321))

    def copies() -> int:
        gc.collect()
        return len([one for one in gc.get_objects() if type(one) is Tensor and one.shape == (54321,)]) - 1

    state = ModuleState(block)
    assert copies() == 1
    block[0](image((1, 4, 5, 5)).float())
    assert state.changes() == ["0.running_mean", "0.running_var", "0.num_batches_tracked"]
    assert state.settle() == []
    assert copies() == 0


def test_a_front_that_changes_its_state_does_not_run_in_strips() -> None:
    counting, normed = nn.Sequential(_Does(_counts)), nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)))
    for block, told in (
        (counting, r"1: changes 0\.calls in"),
        (normed, r"1: changes 0\.parametr.*_u, 0\.parametr.*_v"),
    ):
        model = nn.Sequential(nn.Conv2d(2, 2 if block is counting else 4, 3), block, nn.Conv2d(4, 1, 3))
        with pytest.raises(UserError, match=told + r".*memory\.stream_until"):
            plan_strips(model, 2, "2", IMAGE)
        assert plan_strips(model, 2, "auto", IMAGE).until == "1"


class _OwnCheckpoint(nn.Module):
    """A user's checkpoint around a module with a batch norm."""

    def __init__(self, *more: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), *more)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the reentrant one, in planning
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("more", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_users_own_checkpoint_updates_statistics_twice_as_torch_does(more: int, reentrant: bool, rows: int) -> None:
    """Wherever its second run ends, which torch does as soon as all saved maps are there again."""
    torch.manual_seed(0)
    tail = [nn.ReLU(), nn.Conv2d(4, 4, 3)][:more]
    model = _OwnCheckpoint(*tail, reentrant=reentrant).double()
    for lean_norm in (False, True):
        assert_tiles_agree(model, image((2, 2, 15, 12)), rows, 1, lean_norm=lean_norm)
