"""A hardware file is computed from measured seconds, by pure functions that can be checked without a machine.

A link's two figures are those with which `costs.roofline` gives back the two messages that were timed.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lartpc_ds.costs.hardware import ConvolutionRate, Link, Links, Rates

__all__ = ["ETHERNET", "links_of", "links_of_all_reduce", "rates_of"]

_DIGITS = 4
"""How many digits a figure in the file has; measurements repeat to two or three."""

_ASSUMED = Link(latency_seconds=50e-6, bytes_per_second=1.25e9)
ETHERNET = Links(send=_ASSUMED, all_reduce=_ASSUMED, all_gather=_ASSUMED)
"""A network of 10 Gbit/s, which stands for one that nobody has measured."""


def rates_of(
    ranks: int,
    kernels: Sequence[Mapping[str, Any]],
    scratch: Sequence[float],
    engine: Mapping[str, float],
) -> Rates:
    """The rates of a rank while `ranks` of them share the machine.

    Args:
        ranks: how many shared it.
        kernels: what `calibrate.calibration_rank.kernels` found on each of them; means are taken.
        scratch: the scratch share of each convolution.
        engine: what `short_runs.rank.engine` found on the slowest of them.
    """
    first = kernels[0]
    convolutions = [
        ConvolutionRate(
            **{
                **row,
                "flops_per_second": _rounded(fmean(one["convolutions"][place]["flops_per_second"] for one in kernels)),
                "scratch_share": round(share, 2),
            }
        )
        for place, (row, share) in enumerate(zip(first["convolutions"], scratch, strict=True))
    ]
    operators = {
        precision: {name: _rounded(fmean(one["operators"][precision][name] for one in kernels)) for name in table}
        for precision, table in first["operators"].items()
    }
    fresh = [one["fresh"] for one in kernels if one["fresh"] is not None]
    return Rates(
        ranks=ranks,
        convolutions=tuple(convolutions),
        matmul_flops_per_second={
            precision: _rounded(fmean(one["matmul"][precision] for one in kernels)) for precision in first["matmul"]
        },
        traffic_bytes_per_second=_rounded(fmean(table["add"] for table in operators.values())),
        fresh_bytes_per_second=_rounded(fmean(fresh)) if fresh else None,
        cached_gain=round(fmean(one["cached_gain"] for one in kernels), 2),
        operators=operators,
        operator_seconds=_rounded(engine["pass_seconds"] / engine["operators"]),
        step_seconds=_rounded(max(0.0, engine["step_seconds"] - engine["pass_seconds"])),
    )


def links_of(seconds: Mapping[str, Sequence[float]], ranks: int, large_bytes: int) -> Links:
    """The links between `ranks` ranks of one machine; `seconds` are those of a small and a large message per kind."""
    tree = math.ceil(math.log2(ranks))
    ring = (ranks - 1) / ranks
    return Links(
        send=_link(seconds["send"], 1, large_bytes),
        all_reduce=_link(seconds["all_reduce"], 2 * tree, 2 * ring * large_bytes),
        all_gather=_link(seconds["all_gather"], tree, ring * large_bytes),
    )


def links_of_all_reduce(latency_seconds: float, bytes_per_second: float, hosts: int) -> Links:
    """The links between machines, where only an all-reduce was timed.

    Its smallest sum gives the latency, and the bytes per second are those of its ring.
    """
    latency = latency_seconds / (2 * math.ceil(math.log2(hosts)))
    link = Link(latency_seconds=_rounded(latency), bytes_per_second=_rounded(bytes_per_second))
    return Links(send=link, all_reduce=link, all_gather=link)


def _link(seconds: Sequence[float], messages: int, moved_bytes: float) -> Link:
    small, large = seconds
    # on a busy machine a small message may take as long as a large one
    moving = max(large - small, large / 10)
    return Link(latency_seconds=_rounded(small / messages), bytes_per_second=_rounded(moved_bytes / moving))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
