"""How long an operator or a message takes, and what its kernel needs beside its tensors, by the rates of a machine.

An operator takes the longer of its arithmetic and its memory traffic (a roofline: Williams et al., CACM 52, 65, 2009);
arithmetic is counted as torch's registry of FLOPs counts it. A convolution takes the rate of the most similar one that
was measured. A collective of n ranks is a ring in bytes, 2 (n - 1) / n of them for an all-reduce, and a tree in latency
(Thakur et al., IJHPCA 19, 49, 2005; the same convention as the bus bandwidth of nccl-tests).
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from lartpc_ds.planning.hardware import ConvolutionRate, Link, Links, Rates

__all__ = ["Work", "all_gather_seconds", "all_reduce_seconds", "operator_work", "send_seconds"]

_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_CONVOLUTIONS = ("convolution", "convolution_backward")
_WAYS = ("input", "weight")
"""What a backward pass gives, in the order of its output mask; a bias costs next to nothing beside them."""


class Work(NamedTuple):
    """What one operator takes."""

    seconds: float
    scratch_bytes: int
    """Of its kernel, while it runs."""


_NOTHING = Work(0.0, 0)


def operator_work(func: Any, args: Any, kwargs: Any, result: Any, rates: Rates) -> Work:
    """Of an ATen operator as a dispatch mode sees it; tensors may be fake or on the meta device.

    Views, questions about a tensor and fresh tensors without values cost nothing.
    """
    read = _bytes_of((args, kwargs))
    written = _bytes_of(result)
    if func.is_view or not (read and written):
        return _NOTHING
    name = func.overloadpacket.__name__
    if name in _CONVOLUTIONS:
        return _convolution(name, args, result, rates)
    precision = _precision(result)
    count = flop_registry.get(func.overloadpacket)
    arithmetic = count(*args, **kwargs, out_val=result) / rates.matmul_flops_per_second[precision] if count else 0.0
    traffic = (read + written) / rates.operators.get(name.removesuffix("_"), rates.traffic_bytes_per_second)
    return Work(max(arithmetic, traffic) + rates.operator_seconds, 0)


def _bytes_of(tree: Any) -> int:
    return sum(value.nbytes for value in tree_leaves(tree) if isinstance(value, Tensor))


def _precision(tree: Any) -> Any:
    dtypes = [value.dtype for value in tree_leaves(tree) if isinstance(value, Tensor)]
    return _PRECISIONS.get(dtypes[0], "fp32")


def _convolution(name: str, args: Any, result: Any, rates: Rates) -> Work:
    if name == "convolution":
        x, weight, y, wanted = args[0], args[1], result, ["forward"]
        transposed = bool(args[6])
    else:
        y, x, weight = args[:3]
        transposed, mask = bool(args[7]), args[10]
        wanted = [way for way, is_wanted in zip(_WAYS, mask, strict=False) if is_wanted]
    flops = conv_flop_count(list(x.shape), list(weight.shape), list(y.shape), transposed)
    maps, seconds, scratch = x.nbytes + y.nbytes, 0.0, 0
    for way in wanted:
        rate = _most_similar(rates, _precision(x), way, weight, x.shape[1], y.shape[1])
        traffic = (maps + weight.nbytes) / rates.traffic_bytes_per_second
        seconds += max(flops / rate.flops_per_second, traffic) + rates.operator_seconds
        scratch = max(scratch, int(maps * rate.scratch_share))
    return Work(seconds, scratch)


def _most_similar(
    rates: Rates, precision: str, way: str, weight: Tensor, in_channels: int, out_channels: int
) -> ConvolutionRate:
    depthwise = weight.shape[1] == 1 and in_channels > 1
    kernel = math.sqrt(math.prod(weight.shape[2:]))

    def distance(one: ConvolutionRate) -> tuple[bool, float]:
        off = (one.kernel / kernel, one.in_channels / in_channels, one.out_channels / out_channels)
        return one.depthwise != depthwise, sum(abs(math.log(ratio)) for ratio in off)

    return min(_of(rates, precision, way), key=distance)


def _of(rates: Rates, precision: str, way: str) -> Iterator[ConvolutionRate]:
    return (one for one in rates.convolutions if (one.precision, one.way) == (precision, way))


def send_seconds(size: int, links: Links) -> float:
    """Of a message of `size` bytes to one peer."""
    return _by(links.send, 1, size)


def all_reduce_seconds(size: int, ranks: int, within: Links, across: Links, ranks_per_node: int) -> float:
    """Until `size` bytes of each of `ranks` ranks are summed on all; the ranks of a machine come first.

    The machines' link carries a ring of machines, that inside of each one of its ranks; the slower one counts, and the
    latencies add up.
    """
    return _collective(size, ranks, within.all_reduce, across.all_reduce, ranks_per_node, passes=2)


def all_gather_seconds(size: int, ranks: int, within: Links, across: Links, ranks_per_node: int) -> float:
    """Until every rank has what all have together, which is `size` bytes; a reduce-scatter takes as long."""
    return _collective(size, ranks, within.all_gather, across.all_gather, ranks_per_node, passes=1)


def _collective(size: int, ranks: int, within: Link, across: Link, ranks_per_node: int, passes: int) -> float:
    inside = min(ranks, ranks_per_node)
    nodes = -(-ranks // ranks_per_node)
    latency, slowest = 0.0, 0.0
    for link, members in ((within, inside), (across, nodes)):
        if members > 1:
            latency += passes * math.ceil(math.log2(members)) * link.latency_seconds
            slowest = max(slowest, passes * (members - 1) / members * size / link.bytes_per_second)
    return latency + slowest


def _by(link: Link, messages: int, size: int) -> float:
    return messages * link.latency_seconds + size / link.bytes_per_second
