"""Every function of the table, called once, is exact on tiles and on strips, or refused where it has no rule."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.dry_run import dry_run
from lartpc_ds.exact.trace.trace import Tracer
from tests.operator_calls import CALLS, CHANNELS, Call
from tests.operators import written
from tests.strip_parity import TOLERANCE, difference, streamed
from tests.tile_parity import assert_tiles_agree, image, whole

SHAPE = (2, CHANNELS, 28, 24)
SWEEPS = {"group_norm", "instance_norm", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
"""Functions with a rule for strips that refuses every call."""


class Calls(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).double()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.conv(x))


def test_every_function_has_an_example() -> None:
    assert CALLS.keys() == OPERATORS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_the_example_calls_the_function(name: str) -> None:
    model, tracer = Calls(CALLS[name]), Tracer(one_tile=True)
    with torch.no_grad(), dry_run(model), tracer.inside(model.to("meta"), None):
        model(torch.empty(SHAPE, dtype=torch.float64, device="meta"))
    assert name in {call.name for call in tracer.calls}


@pytest.mark.parametrize("name", CALLS)
def test_on_tiles(name: str) -> None:
    assert OPERATORS[name].on_tiles is not None
    assert_tiles_agree(Calls(CALLS[name]), image(SHAPE), 2, 2)


@pytest.mark.parametrize("name", CALLS)
def test_on_strips(name: str) -> None:
    model = nn.Sequential(OrderedDict(front=Calls(CALLS[name]), rest=nn.Identity()))
    if OPERATORS[name].on_strips is None or name in SWEEPS:
        with pytest.raises(UserError, match=r"memory\.stream_|random numbers"):
            streamed(model, image(SHAPE), 3, "rest")
        return
    assert difference(streamed(model, image(SHAPE), 3, "rest")[0], whole(model, image(SHAPE))) <= TOLERANCE


def test_the_page_is_written_from_the_table() -> None:
    """`python -m tests.operators` writes it."""
    assert written()
