"""What a second run of a block must not do: move running statistics, draw other masks, see another input."""

import copy

import pytest
import torch
from torch import nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Alone, Clock, Tiles
from lartpc_ds.exact.memory.recompute import check_blocks, recompute
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Layout
from tests.tile_parity import image


def _converted(model: nn.Module, *, recomputed: bool, lean_norm: bool = False) -> tuple[nn.Module, Clock]:
    model = copy.deepcopy(model)
    tiles = Tiles(1, 1, Alone(), Alone(), Alone())
    convert(model, plan_tiles(model, Layout(), (2, 12, 11), lean_norm=lean_norm), tiles)
    if recomputed:
        recompute(model, tiles)
    return model, tiles.clock


def _block(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *more)


def test_masks_and_statistics_are_those_of_the_first_run_when_a_later_micro_batch_came_first() -> None:
    """As in a pipeline: two forward passes, then the first one's backward."""
    torch.manual_seed(0)
    frozen = nn.BatchNorm2d(4).eval()
    second = nn.Sequential(nn.Conv2d(4, 4, 3), frozen, nn.Dropout2d(0.3))
    network = nn.Sequential(_block(nn.Dropout(0.5)), nn.Identity(), second, nn.ReLU(inplace=True))
    found = {}
    for recomputed in (False, True):
        model, clock = _converted(network.double(), recomputed=recomputed)
        model[2][1].eval()
        outputs = []
        for micro_batch in range(2):
            clock.micro_batch = micro_batch
            outputs.append(model(image((2, 2, 12, 11), seed=micro_batch)))
        for output in outputs:
            output.square().sum().backward()
        found[recomputed] = {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())
    (gradients, buffers), (plain_gradients, plain_buffers) = found[True], found[False]
    for name, value in plain_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-12, atol=1e-12)
    for name, value in plain_buffers.items():
        assert torch.equal(buffers[name], value), name


def test_only_the_inputs_of_blocks_are_kept() -> None:
    network = nn.Sequential(
        _block(), _block()[1:], nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), nn.Identity()
    ).double()
    model, _ = _converted(network, recomputed=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        model(image((1, 2, 12, 11)))
    assert sizes == [2 * 12 * 11, 4 * 12 * 11, 4 * 12 * 11]


@pytest.mark.parametrize("lean_norm", [False, True])
@pytest.mark.parametrize("as_a_stage", [False, True])
def test_every_block_but_the_last_runs_once_more(as_a_stage: bool, lean_norm: bool) -> None:
    """Also where blocks are run one by one, as in a pipeline stage: the norms' hooks must not hide the checkpoint's."""
    network = nn.Sequential(
        _block(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 2, 3)
    )
    model, _ = _converted(network.double(), recomputed=True, lean_norm=lean_norm)
    runs = [0, 0, 0]
    for number, conv in enumerate(module for module in model.modules() if isinstance(module, nn.Conv2d)):

        def count(*_: object, number: int = number) -> None:
            runs[number] += 1

        conv.register_forward_hook(count)
    x = image((1, 2, 12, 11)).requires_grad_()
    if as_a_stage:
        y = x
        for block in model.children():
            y = block(y)
    else:
        y = model(x)
    y.sum().backward()
    assert runs == [2, 2, 1]


def test_a_block_that_changes_its_input_is_refused() -> None:
    network = nn.Sequential(
        _block(), nn.Sequential(nn.Hardtanh(inplace=True), nn.Conv2d(4, 4, 3)), nn.Identity()
    ).double()
    model, _ = _converted(network, recomputed=True)
    refused = pytest.raises(UserError, match=r"memory\.recompute = 'block': block 1 changes its input in place")
    with refused:
        model(image((1, 2, 12, 11)))
    with refused:
        check_blocks(network, (2, 12, 11))
    check_blocks(network, (2, 12, 11), ["1"])


def test_in_evaluation_nothing_is_wrapped() -> None:
    model, _ = _converted(nn.Sequential(_block(), nn.Identity()).double(), recomputed=True)
    with torch.no_grad():
        assert not model(image((1, 2, 12, 11))).requires_grad
