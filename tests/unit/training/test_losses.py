import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.layout import Layout
from lartpc_ds.training.losses import Loss, check_loss, cross_entropy, import_loss, mean
from tests.tile_parity import on_threads


def scores(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def classes(*shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, 3, shape, generator=torch.Generator().manual_seed(2))


def test_events_by_default() -> None:
    total, weight = cross_entropy()(scores(5, 3), classes(5))
    torch.testing.assert_close(total / weight, F.cross_entropy(scores(5, 3), classes(5)))
    assert float(weight) == 5


def test_class_weights_divide_by_the_number_of_events() -> None:
    weights = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    total, weight = cross_entropy(weights)(scores(5, 3), classes(5))
    expected = F.cross_entropy(scores(5, 3), classes(5), weights, reduction="sum") / 5
    torch.testing.assert_close(total / weight, expected)


@pytest.mark.parametrize("not_counted", [-1, -100, -7])
def test_negative_pixels_are_not_counted(not_counted: int) -> None:
    targets = classes(2, 7, 9, low=-1)
    expected = F.cross_entropy(scores(2, 3, 7, 9), targets, ignore_index=-1)
    total, weight = cross_entropy()(scores(2, 3, 7, 9), targets.masked_fill(targets < 0, not_counted))
    torch.testing.assert_close(total / weight, expected)
    assert float(weight) == int((targets >= 0).sum())


def test_a_batch_without_counted_pixels_costs_nothing() -> None:
    outputs = scores(1, 3, 4, 4).requires_grad_()
    loss = mean(*cross_entropy()(outputs, torch.full((1, 4, 4), -1)))
    loss.backward()
    assert float(loss.detach()) == 0 and outputs.grad is not None and not outputs.grad.any()


def weighted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Its weight depends on the outputs, too."""
    per_pixel = outputs.sigmoid().sum(1) * (targets + 1)
    return (F.cross_entropy(outputs, targets, reduction="none") * per_pixel).sum(), per_pixel.sum()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 1), (2, 2)])
def test_tiles_have_the_loss_and_gradient_of_the_whole(rows: int, cols: int) -> None:
    outputs, targets = scores(2, 3, 11, 13).requires_grad_(), classes(2, 11, 13)
    expected = mean(*weighted(outputs, targets))
    expected.backward()
    assert outputs.grad is not None
    whole = outputs.grad
    cuts = [[0, *sorted(bounds), size] for bounds, size in zip(([4, 7], [5, 9]), (11, 13), strict=True)]

    def tile(tiles: Tiles) -> tuple[Tensor, Tensor, Any]:
        bounds = []
        for cut, parts, at in zip(cuts, (rows, cols), (tiles.row, tiles.col), strict=True):
            edges = [*cut[:parts], cut[-1]]
            bounds.append(slice(edges[at], edges[at + 1]))
        part = (..., bounds[0], bounds[1])
        mine = outputs.detach()[part].clone().requires_grad_()
        loss = mean(*Loss(weighted, "pixels", tiles.group)(mine, targets[part]))
        loss.backward()
        return loss.detach(), mine.grad, part  # type: ignore[return-value]

    for loss, gradient, part in on_threads(Layout(rows=rows, cols=cols), tile):
        torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient / (rows * cols), whole[part], rtol=0, atol=1e-12)


def test_only_this_ranks_part_of_a_whole_map() -> None:
    loss = Loss(cross_entropy(), "pixels", None, ((1, 3), (0, 2)))
    assert loss.mine(scores(2, 3, 7, 9)).equal(scores(2, 3, 7, 9).float()[:, :, 1:3, :2])


def test_what_is_right_is_counted_over_pixels_with_a_class() -> None:
    outputs, targets = (
        F.one_hot(torch.tensor([[[0, 1, 2, 2]]]), 3).movedim(-1, 1).float(),
        torch.tensor([[[0, 1, 1, -1]]]),
    )
    assert Loss(cross_entropy(), "pixels").correct(outputs, targets) == (2, 3)
    tally = Loss(cross_entropy(), "pixels").tally(outputs, targets, 3)
    assert tally.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]] and tally.weight == 3


def test_a_users_own_targets_are_not_counted() -> None:
    own = Loss(lambda outputs, targets: (((outputs - targets) ** 2).sum(), torch.tensor(7.0)), "own")
    assert own.correct(scores(2, 3), scores(2, 3)) == (0, 0)
    tally = own.tally(scores(2, 3), scores(2, 3) + 1, 3)
    assert (tally.total, tally.weight) == (pytest.approx(6), 7) and not tally.confusion.any()


class OneImage:
    """A source of one image; `target` is what its first small read gives."""

    classes = ("a", "b", "c")
    recorded_shape = (40, 50)
    image_shape = (2, 40, 50)
    labels = None

    def __init__(self, task: str, target: Any) -> None:
        self.task, self.target = task, target

    def __len__(self) -> int:
        return 1

    def ids(self) -> list[Any]:
        return []

    def read(self, index: int, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[Any, Any]:
        return np.zeros((2, rows[1] - rows[0], cols[1] - cols[0]), np.float32), self.target


PIXELS = OneImage("pixels", np.zeros((16, 16), np.int8)), torch.empty(1, 3, 40, 50, device="meta")
EVENTS = OneImage("events", 1), torch.empty(1, 3, device="meta")
OWN = OneImage("own", np.zeros((16, 16), np.float32)), torch.empty(1, 1, 40, 50, device="meta")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("my_losses_for_test")
    monkeypatch.setitem(sys.modules, "my_losses_for_test", module)
    return module


@pytest.mark.parametrize("case", [PIXELS, EVENTS])
def test_a_loss_that_fits(module: ModuleType, case: tuple[OneImage, Tensor]) -> None:
    vars(module).update(loss=cross_entropy())
    before = torch.random.get_rng_state()
    check_loss("my_losses_for_test:loss", *case)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_on_targets_of_its_own(module: ModuleType) -> None:
    vars(module).update(loss=lambda outputs, targets: (((outputs[:, 0] - targets) ** 2).sum(), torch.tensor(1.0)))
    check_loss("my_losses_for_test:loss", *OWN)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (3, r"holds a int, which is not callable"),
        (lambda outputs: outputs.sum(), r"on outputs of \(1, 3, 16, 16\), targets of \(1, 16, 16\): TypeError at"),
        (lambda outputs, targets: 1 / 0, r"ZeroDivisionError at .*test_losses\.py:\d+"),
        (lambda outputs, targets: outputs.sum(), r"must return \(total, weight\).*returns tensor of \(\)"),
        (lambda outputs, targets: (outputs.sum(), 3), r"returns tensor of \(\), int"),
        (lambda outputs, targets: (outputs, outputs.sum()), r"returns tensor of \(1, 3, 16, 16\), tensor of \(\)"),
        (lambda outputs, targets: (torch.tensor(1.0), torch.tensor(1.0)), r"does not depend on the outputs"),
    ],
)
def test_a_loss_that_does_not_fit_is_named(module: ModuleType, loss: Any, message: str) -> None:
    vars(module).update(loss=loss)
    with pytest.raises(UserError, match=rf"train\.loss_target = 'my_losses_for_test:loss'.*{message}"):
        check_loss("my_losses_for_test:loss", *PIXELS)


@pytest.mark.parametrize("path", ["my_losses", "no_such_module_for_test:loss", "sys:no_such_name"])
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(UserError, match=rf"train\.loss_target = '{path}'"):
        import_loss(path)
