"""How long an operator or a message takes, and what its kernel needs beside its tensors, by the rates of a machine.

An operator takes the longer of its arithmetic and its memory traffic (a roofline: Williams et al., CACM 52, 65, 2009);
arithmetic is counted as torch's registry of FLOPs counts it. A convolution takes the rate of the most similar one that
was measured. Large results take the time of their pages besides, where memory comes from the kernel anew.
A collective of n ranks is a ring in bytes, 2 (n - 1) / n of them for an all-reduce, and a tree in latency (Thakur et
al., IJHPCA 19, 49, 2005; the same convention as the bus bandwidth of nccl-tests).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from lartpc_ds.costs.hardware import ConvolutionRate, Link, Links, Precision, Rates, Way

__all__ = [
    "DTYPES",
    "NO_WORK",
    "OperatorCall",
    "Work",
    "all_gather_seconds",
    "all_reduce_seconds",
    "send_seconds",
]

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The number format of each precision that rates are kept for."""
_PRECISIONS: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_CONVOLUTIONS = ("convolution", "convolution_backward")
_WAYS: tuple[Way, ...] = ("input", "weight")
"""What a backward pass gives, in the order of its output mask; a bias costs next to nothing beside these."""


class Work(NamedTuple):
    """What one call of an operator takes."""

    seconds: float
    scratch_bytes: int
    """What its kernel takes for itself while it runs."""


NO_WORK = Work(0.0, 0)
_WITHOUT_VALUES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_TRAINING, _MASK = 5, 9
"""Places of an argument of native_batch_norm, and of its backward: are statistics its own, and what it gives."""


class OperatorCall:
    """One call of an ATen operator as a dispatch mode sees it; its tensors may be fake or on the meta device."""

    def __init__(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._func, self._args, self._kwargs, self._result = func, args, kwargs, result
        self.arguments = _tensors(args, kwargs)
        self.results = _tensors(result)
        self.is_view = bool(func.is_view)
        moves = not self.is_view and any(value.nbytes for value in self.results)
        self._fresh_bytes = self._bytes_of_fresh_results() if moves else []
        self.works = moves and bool(self._fresh_bytes or func._schema.is_mutable)
        """Does the call take any time? Views, also those by another name (_unsafe_view), and questions take none."""

    def _bytes_of_fresh_results(self) -> list[int]:
        """Bytes of each result that no argument holds: results in place need no memory."""
        given = {value.untyped_storage()._cdata for value in self.arguments}
        return [value.nbytes for value in self.results if value.untyped_storage()._cdata not in given]

    @property
    def name(self) -> str:
        """The name that rates go by: ATen's, in place or not; a norm that does half of its work has a name of its own.

        `native_batch_norm-fixed` has its statistics already, `native_batch_norm_backward-sums` gives no map.
        """
        name: str = self._func.overloadpacket.__name__.removesuffix("_")
        if name == "native_batch_norm" and not self._args[_TRAINING]:
            return f"{name}-fixed"
        if name == "native_batch_norm_backward" and not self._args[_MASK][0]:
            return f"{name}-sums"
        return name

    @property
    def precision(self) -> Precision:
        """The precision of the first result."""
        return _precision(self.results[0])

    @property
    def moved_bytes(self) -> int:
        """What the call reads and writes, each of its tensors once."""
        return sum(value.nbytes for value in (*self.arguments, *self.results))

    def work(self, rates: Rates, *, in_pieces: bool = False) -> Work:
        """What the call takes by the rates of a machine; tensors without values take only the time of their pages.

        `in_pieces` says that it works on pieces that a cache holds, whatever size it is seen with.
        """
        if not self.works:
            return NO_WORK
        pages = 0.0 if in_pieces else sum(_page_seconds(size, rates) for size in self._fresh_bytes)
        name = self.name
        if name in _WITHOUT_VALUES:
            return Work(pages, 0)
        if name in _CONVOLUTIONS:
            seconds, scratch = _convolution(name, self._args, self._result, rates)
            return Work(seconds + pages + (0.0 if in_pieces else _page_seconds(scratch, rates)), scratch)
        count = flop_registry.get(self._func.overloadpacket)
        flops = count(*self._args, **self._kwargs, out_val=self._result) if count else 0
        arithmetic = flops / _matmul(rates, self.precision)
        rate = rates.operators.get(self.precision, {}).get(name, rates.traffic_bytes_per_second)
        if in_pieces:
            rate *= rates.cached_gain
        return Work(max(arithmetic, self.moved_bytes / rate) + rates.operator_seconds + pages, 0)


def _tensors(*trees: Any) -> list[Tensor]:
    return [value for value in tree_leaves(trees) if isinstance(value, Tensor)]


def _page_seconds(size: int, rates: Rates) -> float:
    if rates.fresh_bytes_per_second is None or size <= rates.fresh_map_bytes:
        return 0.0
    return size / rates.fresh_bytes_per_second


def _matmul(rates: Rates, precision: Precision) -> float:
    known = rates.matmul_flops_per_second
    return known.get(precision) or min(known.values())


def _precision(tensor: Tensor) -> Precision:
    """The precision by which rates are kept; what is neither of the two 16-bit formats counts as fp32."""
    return _PRECISIONS.get(tensor.dtype, "fp32")


def _convolution(name: str, args: Any, result: Any, rates: Rates) -> Work:
    if name == "convolution":
        x, weight, y = args[0], args[1], result
        wanted: list[Way] = ["forward"]
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
    rates: Rates, precision: Precision, way: Way, weight: Tensor, in_channels: int, out_channels: int
) -> ConvolutionRate:
    depthwise = weight.shape[1] == 1 and in_channels > 1
    kernel = math.sqrt(math.prod(weight.shape[2:]))

    def distance(one: ConvolutionRate) -> tuple[bool, float]:
        off = (one.kernel / kernel, one.in_channels / in_channels, one.out_channels / out_channels)
        return one.depthwise != depthwise, sum(abs(math.log(ratio)) for ratio in off)

    of_way = [one for one in rates.convolutions if one.way == way]
    return min([one for one in of_way if one.precision == precision] or of_way, key=distance)


def send_seconds(size: int, links: Links) -> float:
    """How long a message of `size` bytes to one peer takes."""
    return _by(links.send, 1, size)


def all_reduce_seconds(size: int, ranks: int, within: Links, across: Links, ranks_per_node: int) -> float:
    """How long it takes until `size` bytes of each rank are summed on all ranks; the ranks of a machine come first.

    The machines' link carries a ring of machines, that inside of each one of its ranks; the slower one counts, and the
    latencies add up.
    """
    return _collective(size, ranks, within.all_reduce, across.all_reduce, ranks_per_node, passes=2)


def all_gather_seconds(size: int, ranks: int, within: Links, across: Links, ranks_per_node: int) -> float:
    """How long it takes until every rank has what all have together: `size` bytes. A reduce-scatter takes as long."""
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
