"""What is timed and what becomes of it, at sizes that take no time."""

import torch

from lartpc_ds.costs.calibration import links_of, links_of_all_reduce, rates_of
from lartpc_ds.costs.hardware import Link, Links
from lartpc_ds.costs.kernels import (
    CONVOLUTIONS,
    Convolution,
    Sizes,
    Stopwatch,
    convolution_scratch,
    convolution_seconds,
    fresh_rate,
    matmul_rate,
)
from lartpc_ds.costs.operators import count_operators, operator_rates
from lartpc_ds.costs.roofline import all_gather_seconds, all_reduce_seconds, send_seconds

CPU = torch.device("cpu")
TINY = Sizes(map_bytes=1 << 14, convolution_flops=1e6, matmul_side=32, fresh_bytes=1 << 16, repeats=2)


class Counted(Stopwatch):
    """Every call takes a second."""

    def seconds(self, call: object) -> float:
        assert callable(call)
        call()
        return 1.0


def test_a_convolutions_flops_are_those_of_the_map_that_it_is_given() -> None:
    small = Convolution(3, 8, 16)
    seconds, flops = convolution_seconds(small, "fp32", "weight", TINY, Counted(CPU, 1))
    side = int((1e6 / (2 * 9 * 8 * 16)) ** 0.5)
    assert (seconds, flops) == (1.0, 2 * 9 * 8 * 16 * min(side, 16) ** 2)
    _, of_groups = convolution_seconds(Convolution(7, 96, 96, depthwise=True), "bf16", "input", TINY, Counted(CPU, 1))
    assert of_groups == 2 * 49 * 96 * 9**2


def test_every_convolution_of_the_list_runs_every_way() -> None:
    for one in CONVOLUTIONS:
        for way in one.ways:
            seconds, flops = convolution_seconds(one, "bf16", way, TINY, Stopwatch(CPU, 1))
            assert seconds > 0 and flops > 0


def test_scratch_is_a_share_of_the_maps() -> None:
    assert 0 <= convolution_scratch(Convolution(1, 64, 64), "fp32", "forward", TINY, CPU) < 100


def test_the_others() -> None:
    assert matmul_rate("fp32", TINY, Counted(CPU, 1)) == 2.0 * 32**3
    assert fresh_rate(TINY, Counted(CPU, 1)) is None, "no slower than memory that is there"
    assert fresh_rate(Sizes(1, 1, 1, 0, 1), Stopwatch(CPU, 1)) is None


def test_operators_are_found_under_the_names_and_bytes_that_a_prediction_looks_up() -> None:
    x = 64 * 8 * 8 * 4
    single = operator_rates("fp32", TINY, Counted(CPU, 1))
    assert single["fp32"]["add"] == 3 * x
    assert single["fp32"]["relu"] == 2 * x
    assert single["fp32"]["threshold_backward"] == 3 * x
    assert single["bf16"]["_to_copy"] == x + x // 2
    half = operator_rates("bf16", TINY, Counted(CPU, 1))
    wanted = {
        "native_batch_norm",
        "native_batch_norm-fixed",
        "native_batch_norm_backward",
        "native_layer_norm_backward",
    }
    assert wanted | {"max_pool2d_with_indices", "max_pool2d_with_indices_backward", "gelu_backward"} <= set(
        half["bf16"]
    )
    assert "_to_copy" in half["fp32"]


def test_operators_are_counted_both_ways() -> None:
    x = torch.ones(3, requires_grad=True)
    assert count_operators(lambda: x * 2) == 1
    assert count_operators(lambda: torch.autograd.grad((x * 2).sum(), x)) > 2


def kernels(speed: float) -> dict[str, object]:
    row = {"precision": "fp32", "kernel": 3, "in_channels": 8, "out_channels": 8, "depthwise": False}
    ways = ("forward", "input", "weight")
    return {
        "convolutions": [{**row, "way": way, "flops_per_second": 1e9 * speed} for way in ways],
        "matmul": {"fp32": 2e9 * speed},
        "operators": {"fp32": {"add": 3e9 * speed}, "bf16": {"add": 1e9 * speed}},
        "fresh": 4e9 * speed,
        "cached_gain": speed,
    }


def test_rates_are_means_over_ranks_and_the_engine_is_what_the_passes_leave() -> None:
    engine = {"step_seconds": 0.5, "pass_seconds": 0.2, "operators": 100, "peak_bytes": 1}
    found = rates_of(2, [kernels(1.0), kernels(3.0)], [0.5, 1.0, 4.0], engine)
    assert (found.ranks, found.matmul_flops_per_second, found.fresh_bytes_per_second) == (2, {"fp32": 4e9}, 8e9)
    assert [one.scratch_share for one in found.convolutions] == [0.5, 1.0, 4.0]
    assert {one.flops_per_second for one in found.convolutions} == {2e9}
    assert (found.traffic_bytes_per_second, found.cached_gain) == (4e9, 2.0)
    assert (found.operator_seconds, found.step_seconds) == (0.002, 0.3)


def test_links_give_back_the_messages_that_were_timed() -> None:
    size = 16 << 20
    seconds = {"send": (1e-4, 0.011), "all_reduce": (3e-4, 0.02), "all_gather": (2e-4, 0.01)}
    for ranks in (2, 4, 6):
        found = links_of(seconds, ranks, size)
        for large, told in ((0, 0), (size, 1)):
            times = (
                send_seconds(large, found),
                all_reduce_seconds(large, ranks, found, found, ranks),
                all_gather_seconds(large, ranks, found, found, ranks),
            )
            for time, kind in zip(times, seconds, strict=True):
                assert abs(time - seconds[kind][told]) < 1e-3 * time


def test_the_network_between_hosts_from_one_all_reduce() -> None:
    across = links_of_all_reduce(4e-4, 5e8, 4)
    assert across.send == Link(latency_seconds=1e-4, bytes_per_second=5e8)
    free = Link(latency_seconds=0.0, bytes_per_second=1e30)
    within = Links(send=free, all_reduce=free, all_gather=free)
    assert abs(all_reduce_seconds(0, 4, within, across, 1) - 4e-4) < 1e-12
