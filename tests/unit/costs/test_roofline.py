"""Seconds and scratch of operators and messages, against counts by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lartpc_ds.costs.hardware import ConvolutionRate, Link, Links, Rates
from lartpc_ds.costs.roofline import (
    NO_WORK,
    OperatorCall,
    Work,
    all_gather_seconds,
    all_reduce_seconds,
    send_seconds,
)

WAYS = ("forward", "input", "weight")
FLOPS = {("forward", 3): 1e12, ("input", 3): 5e11, ("weight", 3): 2.5e11, ("forward", 1): 4e12}
SMALL = 1e-6
RATES = Rates(
    ranks=1,
    convolutions=tuple(
        ConvolutionRate(
            precision="bf16",
            way=way,
            kernel=kernel,
            in_channels=64,
            out_channels=64,
            depthwise=deep,
            flops_per_second=FLOPS.get((way, kernel), 1e12) / (100 if deep else 1),
            scratch_share=2.0 if way == "weight" else 0.0,
        )
        for way in WAYS
        for kernel in (1, 3)
        for deep in (False, True)
    ),
    matmul_flops_per_second={"fp32": 1e12},
    traffic_bytes_per_second=1e11,
    operators={"bf16": {"native_batch_norm": 1e10, "native_batch_norm-fixed": 2e10}},
    operator_seconds=SMALL,
)


def works(call: Callable[[], object], rates: Rates = RATES) -> dict[str, Work]:
    """Of each operator that costs anything, the last of a name."""
    found: dict[str, Work] = {}

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            call = OperatorCall(func, args, kwargs or {}, result)
            if (work := call.work(rates)) != NO_WORK:
                found[call.name] = work
            return result

    with FakeTensorMode(), Watched():
        call()
    return found


def maps(channels: int = 64, side: int = 1024, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(1, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)


def test_a_convolution_takes_its_arithmetic() -> None:
    flops = 2 * 9 * 64 * 64 * 1024**2
    found = works(lambda: F.conv2d(maps(), torch.empty(64, 64, 3, 3, dtype=torch.bfloat16), padding=1))
    assert found["convolution"].seconds == pytest.approx(flops / 1e12 + SMALL)
    assert found["convolution"].scratch_bytes == 0


def test_ways_back_have_rates_of_their_own_and_count_only_if_wanted() -> None:
    flops = 2 * 9 * 64 * 64 * 1024**2

    def backward(mask: list[bool]) -> Callable[[], object]:
        weight = lambda: torch.empty(64, 64, 3, 3, dtype=torch.bfloat16)  # noqa: E731
        options = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
        return lambda: torch.ops.aten.convolution_backward(maps(), maps(), weight(), *options)

    both = works(backward([True, True, False]))["convolution_backward"]
    one = works(backward([False, True, False]))["convolution_backward"]
    assert both.seconds == pytest.approx(flops / 5e11 + flops / 2.5e11 + 2 * SMALL)
    assert one.seconds == pytest.approx(flops / 2.5e11 + SMALL)
    assert one.scratch_bytes == 2 * 2 * maps().nbytes


def test_a_convolution_without_much_arithmetic_takes_its_traffic() -> None:
    found = works(lambda: F.conv2d(maps(1), torch.empty(64, 1, 1, 1, dtype=torch.bfloat16)))
    moved = maps(1).nbytes + maps(64).nbytes + 128
    assert found["convolution"].seconds == pytest.approx(moved / 1e11 + SMALL)


def test_depthwise_is_not_taken_for_a_full_convolution() -> None:
    found = works(lambda: F.conv2d(maps(), torch.empty(64, 1, 7, 7, dtype=torch.bfloat16), padding=3, groups=64))
    assert found["convolution"].seconds == pytest.approx(2 * 49 * 64 * 1024**2 / 1e10 + SMALL)


def test_an_operator_takes_its_traffic_at_its_own_rate() -> None:
    x = maps().nbytes
    assert works(lambda: torch.relu(maps()))["relu"].seconds == pytest.approx(2 * x / 1e11 + SMALL)
    vectors = lambda: [torch.empty(64) for _ in range(4)]  # noqa: E731

    def norm(training: bool) -> object:
        mean, variance, weight, bias = vectors()
        return F.batch_norm(maps(), mean, variance, weight, bias, training=training)

    own = works(lambda: norm(True))["native_batch_norm"].seconds
    fixed = works(lambda: norm(False))["native_batch_norm-fixed"].seconds
    assert own == pytest.approx(2 * x / 1e10, rel=1e-3)
    assert fixed == pytest.approx(2 * x / 2e10, rel=1e-3)


def test_an_unmeasured_precision_takes_what_there_is() -> None:
    flops = 2 * 9 * 64 * 64 * 256**2
    single = works(lambda: F.conv2d(maps(side=256, dtype=torch.float32), torch.empty(64, 64, 3, 3), padding=1))
    assert single["convolution"].seconds == pytest.approx(flops / 1e12 + SMALL)
    half = works(lambda: torch.empty(2048, 2048, dtype=torch.float16) @ torch.empty(2048, 2048, dtype=torch.float16))
    assert half["mm"].seconds == pytest.approx(2 * 2048**3 / 1e12 + SMALL)


def test_views_and_questions_cost_nothing() -> None:
    assert works(lambda: torch.empty(1, 512, 512, 64).permute(0, 3, 1, 2).detach()[:, :, 1:].is_contiguous()) == {}


def test_pages_of_large_results_cost_once_and_in_place_nothing() -> None:
    rates = RATES.model_copy(update={"fresh_bytes_per_second": 1e9})
    x = maps().nbytes
    assert x > rates.fresh_map_bytes
    assert works(lambda: torch.relu(maps()), rates)["relu"].seconds == pytest.approx(x / 1e9 + 2 * x / 1e11 + SMALL)
    assert works(lambda: maps().relu_(), rates)["relu"].seconds == pytest.approx(2 * x / 1e11 + SMALL)
    assert works(lambda: maps().new_empty(maps().shape), rates)["new_empty"].seconds == pytest.approx(x / 1e9)
    small = maps(side=128)
    assert works(lambda: torch.relu(maps(side=128)), rates)["relu"].seconds == pytest.approx(
        2 * small.nbytes / 1e11 + SMALL
    )


def links(latency_seconds: float, bytes_per_second: float) -> Links:
    link = Link(latency_seconds=latency_seconds, bytes_per_second=bytes_per_second)
    return Links(send=link, all_reduce=link, all_gather=link)


def test_messages() -> None:
    within, across = links(1e-6, 1e10), links(1e-5, 1e9)
    assert send_seconds(10**9, within) == pytest.approx(0.1 + 1e-6)
    assert all_reduce_seconds(10**9, 1, within, across, 4) == 0
    # four ranks of one machine: a ring of 2 * 3/4 of the bytes, a tree of 2 * 2 messages
    assert all_reduce_seconds(10**9, 4, within, across, 4) == pytest.approx(0.15 + 4e-6)
    assert all_gather_seconds(10**9, 4, within, across, 4) == pytest.approx(0.075 + 2e-6)
    # two machines: 2 * 1/2 of the bytes on the slow link, and its two messages beside the four
    assert all_reduce_seconds(10**9, 8, within, across, 4) == pytest.approx(1.0 + 4e-6 + 2e-5)
    assert all_reduce_seconds(10**9, 64, within, across, 4) == pytest.approx(2 * 15 / 16 + 4e-6 + 8e-5)
