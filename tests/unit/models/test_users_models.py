import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

from lartpc_ds.errors import UserError
from lartpc_ds.models.build import blocks, build_model


class TwoStep(nn.Module):
    def __init__(self, planes: int, num_classes: int) -> None:
        super().__init__()
        self.planes, self.num_classes = planes, num_classes
        self.first, self.second = nn.Conv2d(planes, 4, 3), nn.Conv2d(4, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class WithBlocks(TwoStep):
    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [("first", self.first), ("second", self.second)]


def _raise_inside(planes: int, num_classes: int) -> nn.Module:
    raise TypeError("a bug of the user's own")


@pytest.fixture
def my_pkg(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("my_pkg_for_test")
    vars(module).update(
        net=TwoStep,
        number=3,
        no_arguments=lambda: nn.Identity(),
        text=lambda planes, num_classes: "x",
        bug=_raise_inside,
    )
    monkeypatch.setitem(sys.modules, "my_pkg_for_test", module)
    return module


def _from(target: str, **settings: object) -> nn.Module:
    return build_model("resnet18", planes=2, num_classes=7, target=target, **settings)


def test_a_target_is_called_with_planes_and_classes(my_pkg: ModuleType) -> None:
    model = _from("my_pkg_for_test:net")
    assert isinstance(model, TwoStep)
    assert (model.planes, model.num_classes) == (2, 7)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_pkg_for_test", r"must read 'my_pkg\.module:function'"),
        (":net", r"must read"),
        ("no_such_pkg_for_test:net", r"cannot import no_such_pkg_for_test"),
        ("my_pkg_for_test:absent", r"has no such name"),
        ("my_pkg_for_test:number", r"holds a int, which is not callable"),
        ("my_pkg_for_test:no_arguments", r"must accept function\(planes=\.\.\., num_classes=\.\.\.\)"),
        ("my_pkg_for_test:text", r"returned a str; it must return a torch\.nn\.Module"),
    ],
)
def test_a_wrong_target_is_named(my_pkg: ModuleType, target: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.target = '{target}'.*{message}"):
        _from(target)


def test_an_error_inside_the_users_function_keeps_its_traceback(my_pkg: ModuleType) -> None:
    with pytest.raises(TypeError, match="a bug of the user's own"):
        _from("my_pkg_for_test:bug")


@pytest.mark.parametrize("settings", [{"width": 32}, {"norm": "group"}, {"plane_mode": "towers"}])
def test_settings_that_a_target_would_ignore_are_refused(my_pkg: ModuleType, settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"have no effect"):
        _from("my_pkg_for_test:net", **settings)


def test_a_model_supplies_its_own_blocks() -> None:
    model = WithBlocks(2, 3)
    assert blocks(model) == [("first", model.first), ("second", model.second)]


def test_a_block_used_twice_is_run_twice() -> None:
    relu = nn.ReLU()
    assert [block for _, block in blocks(nn.Sequential(relu, nn.Identity(), relu))][::2] == [relu, relu]


def test_without_blocks_the_features_that_need_them_are_named() -> None:
    model = TwoStep(2, 3)
    with pytest.raises(UserError, match=r"TwoStep has no blocks\(\).*layout\.pipe.*memory\.recompute"):
        blocks(model)
    model.blocks = nn.ModuleList()  # a common name in networks, and not the method
    with pytest.raises(UserError, match=r"TwoStep has no blocks\(\)"):
        blocks(model)


@pytest.mark.parametrize(
    ("supply", "message"),
    [
        (lambda model: [("first", model.first)], r"leaves out parameters: second\.weight, second\.bias"),
        (lambda model: [("a", model.first), ("a", model.second)], r"gives a name twice: a, a"),
        (lambda model: [model.first, model.second], r"must give \(name, nn\.Module\) pairs, got Conv2d"),
    ],
)
def test_wrong_blocks_are_refused(
    monkeypatch: pytest.MonkeyPatch, supply: Callable[[TwoStep], object], message: str
) -> None:
    monkeypatch.setattr(WithBlocks, "blocks", supply)
    with pytest.raises(UserError, match=message):
        blocks(WithBlocks(2, 3))
