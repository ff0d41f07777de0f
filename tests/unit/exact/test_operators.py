"""Every function of the table, called once, is exact on tiles, strips and patches, or refused where it has no rule."""

from collections import OrderedDict
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.dry_run import dry_run
from lartpc_ds.exact.trace.trace import Tracer
from tests.lit_parity import assert_lit_agrees, events
from tests.operator_calls import CALLS, CHANNELS, Call
from tests.operators import written
from tests.strip_parity import TOLERANCE, difference, streamed
from tests.tile_parity import assert_tiles_agree, image, whole

SHAPE = (2, CHANNELS, 28, 24)
SWEEPS = {"group_norm", "instance_norm", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
"""Functions with a rule for strips that refuses every call."""
REFUSED_ON_PATCHES = {"adaptive_avg_pool2d", "interpolate"}
"""Functions whose example (several cells, bilinear) is refused on patches, although others of their calls are exact."""


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


def _joined(names: Sequence[str]) -> Call:
    """Give the results of several functions as channels of one map."""
    return lambda x: torch.cat([CALLS[name](x) for name in names], 1)


def _batches() -> list[tuple[str, ...]]:
    """The pointwise functions, which have one rule, a dozen at a time, and every other function by itself."""
    alike = [name for name in CALLS if OPERATORS[name] is OPERATORS["relu"]]
    batches = [tuple(alike[start : start + 12]) for start in range(0, len(alike), 12)]
    return batches + [(name,) for name in CALLS if name not in alike]


@pytest.mark.parametrize("names", _batches(), ids=" ".join)
def test_on_tiles(names: tuple[str, ...]) -> None:
    call = CALLS[names[0]] if len(names) == 1 else _joined(names)
    assert_tiles_agree(Calls(call), image(SHAPE), 2, 2)


@pytest.mark.parametrize("names", _batches(), ids=" ".join)
def test_on_strips(names: tuple[str, ...]) -> None:
    call = CALLS[names[0]] if len(names) == 1 else _joined(names)
    model = nn.Sequential(OrderedDict(front=Calls(call), rest=nn.Identity()))
    if OPERATORS[names[0]].on_strips is None or names[0] in SWEEPS:
        with pytest.raises(UserError, match=r"memory\.stream_|random numbers"):
            streamed(model, image(SHAPE), 3, "rest")
        return
    assert difference(streamed(model, image(SHAPE), 3, "rest")[0], whole(model, image(SHAPE))) <= TOLERANCE


@pytest.mark.parametrize("names", _batches(), ids=" ".join)
def test_on_patches(names: tuple[str, ...]) -> None:
    call = CALLS[names[0]] if len(names) == 1 else _joined(names)
    model, x = nn.Sequential(OrderedDict(front=Calls(call))), events(("track", "empty"), CHANNELS, 28, 22)
    if OPERATORS[names[0]].on_patches is None or names[0] in REFUSED_ON_PATCHES:
        with pytest.raises(UserError, match=r"memory\.lit_|random numbers"):
            assert_lit_agrees(model, x, 8)
        return
    # a gradient that goes through float32 is rounded for each pixel, or once for all places of a patch
    tolerance = 1e-6 if {"type", "type_as"} & set(names) else TOLERANCE
    assert assert_lit_agrees(model, x, 8, tolerance=tolerance).covered == 1


def test_the_page_is_written_from_the_table() -> None:
    """`python -m tests.operators` writes it."""
    assert written()
