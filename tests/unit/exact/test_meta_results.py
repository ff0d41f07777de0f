"""What is remembered of an operator on meta tensors is what torch gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.exact.trace.dry_run import dry_run
from lartpc_ds.exact.trace.meta_results import result_on_meta


def _map(channels_last: bool = False) -> Tensor:
    kind = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(2, 4, 9, 7, device="meta", memory_format=kind)


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "convolution": lambda x: F.conv2d(x, x.new_empty(6, 2, 3, 3), x.new_empty(6), (2, 1), (1, 2), 1, 2),
    "norm": lambda x: F.batch_norm(x, None, None, training=True),
    "pool": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True),
    "promotion by an int": lambda x: x.long() * 1,
    "promotion by a float": lambda x: x.long() * 1.0,
    "promotion by a bool": lambda x: x.long() * True,
    "view": lambda x: x.transpose(1, 2)[:, 1:],
    "several": lambda x: torch.var_mean(x, (2, 3)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_torchs(name: str, channels_last: bool) -> None:
    def described(value: Any) -> list[Any]:
        values = value if isinstance(value, tuple) else (value,)
        return [(one.shape, one.stride(), one.dtype, one.is_meta) for one in values]

    wanted = described(CALLS[name](_map(channels_last)))
    for _ in range(2):
        with dry_run(nn.Identity()):
            assert described(CALLS[name](_map(channels_last))) == wanted


def test_an_operator_in_place_changes_its_argument() -> None:
    x = _map()
    assert result_on_meta(torch.ops.aten.relu_.default, (x,), {}) is x
    y = result_on_meta(torch.ops.aten.view.default, (x, [2, 4, 63]), {})
    assert y._base is x or y.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_the_same_shapes_are_asked_of_torch_once() -> None:
    asked = []

    class Counted:
        _schema, tags = torch.ops.aten.relu.default._schema, torch.ops.aten.relu.default.tags

        def __call__(self, x: Tensor) -> Tensor:
            asked.append(x.shape)
            return torch.ops.aten.relu.default(x)

    counted = Counted()
    for _ in range(3):
        assert result_on_meta(counted, (_map(),), {}).shape == (2, 4, 9, 7)
    assert len(asked) == 1
