"""How a device's convolutions and matrix products are timed, and what a convolution takes for itself.

Everything is timed in memory that is in use already, at a size that no cache holds and that malloc keeps; fresh pages
are timed by themselves (see `costs.hardware`). Rejected: a real network under a profiler, whose small layers say
little of a whole event's.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lartpc_ds.costs.hardware import Precision, Way
from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.costs.roofline import DTYPES
from lartpc_ds.exact.grid.pieces import CACHED_BYTES

__all__ = [
    "CONVOLUTIONS",
    "SIZES",
    "Convolution",
    "Sizes",
    "Stopwatch",
    "cached_gain",
    "convolution_scratch",
    "convolution_seconds",
    "fresh_rate",
    "matmul_rate",
]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the measured tensors."""

    map_bytes: int
    """The size of an operator's map, and of the larger map of a convolution: half of what malloc keeps."""
    convolution_flops: float
    """The most arithmetic of one call: more channels then mean a smaller map, as in a network."""
    matmul_side: int
    fresh_bytes: int
    """The size of a tensor whose pages are new; 0 where the device's allocator keeps what it has."""
    repeats: int


SIZES = {
    "cpu": Sizes(16 << 20, 2e9, 1024, 80 << 20, 3),
    "cuda": Sizes(256 << 20, 1e12, 8192, 0, 10),
}
"""The sizes for each kind of device; a GPU needs larger maps to be busy."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution with a square kernel, padded so that stride 1 keeps the size."""

    kernel: int
    in_channels: int
    out_channels: int
    stride: int = 1
    depthwise: bool = False
    ways: tuple[Way, ...] = ("forward", "input", "weight")


CONVOLUTIONS = (
    Convolution(7, 3, 64, 2, ways=("forward", "weight")),  # no one asks for the gradient of an image
    *(Convolution(3, channels, channels) for channels in (64, 128, 256, 512)),
    *(Convolution(1, narrow, 4 * narrow) for narrow in (64, 256, 512)),
    *(Convolution(1, 4 * narrow, narrow) for narrow in (64, 128, 256, 512)),
    *(Convolution(7, channels, channels, depthwise=True) for channels in (96, 384)),
)
"""Convolutions of ResNets, bottlenecks and ConvNeXts, in steps that no network is far from."""


class Stopwatch:
    """Times calls after a warm-up; `before` each call the ranks wait for each other, so that all are busy."""

    def __init__(self, device: torch.device, repeats: int, before: Callable[[], None] = lambda: None) -> None:
        self.device, self._repeats, self._before = device, repeats, before

    def seconds(self, call: Callable[[], object]) -> float:
        """The median time of one call."""
        return statistics.median(list(self._samples(call))[1:])

    def _samples(self, call: Callable[[], object]) -> Iterator[float]:
        for _ in range(self._repeats + 1):
            self._before()
            self._wait()
            started = time.perf_counter()
            result = call()
            self._wait()
            yield time.perf_counter() - started
            del result  # freed outside of the time, as a step frees a map long after it is made

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class _Call:
    run: Callable[[], object]
    flops: float
    maps_bytes: int
    result_bytes: int


def convolution_seconds(
    one: Convolution, precision: Precision, way: Way, sizes: Sizes, watch: Stopwatch
) -> tuple[float, float]:
    """The seconds of one call, and its FLOPs as torch counts them: two for a multiplication and an addition."""
    call = _call(one, precision, way, _side(one, DTYPES[precision], sizes), watch.device)
    return watch.seconds(call.run), call.flops


def convolution_scratch(one: Convolution, precision: Precision, way: Way, sizes: Sizes, device: torch.device) -> float:
    """What the kernel takes for itself at its peak, over the bytes of its two maps.

    It is the slope between two sizes, because copies of the weight do not grow with the map. On a CPU it means
    something only where malloc gives everything back at once (MALLOC_MMAP_THRESHOLD_=65536).
    """
    side = _side(one, DTYPES[precision], sizes)
    calls = [_call(one, precision, way, pixels, device) for pixels in (side, side + side // 2)]
    low, high = (_scratch_bytes(call, device) for call in calls)
    return max(0, high - low) / (calls[1].maps_bytes - calls[0].maps_bytes)


def _scratch_bytes(call: _Call, device: torch.device) -> int:
    call.run()  # what a kernel leaves behind is not scratch
    memory = PeakMemory(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    call.run()
    return memory.peak_bytes() - before - call.result_bytes


def _flops_a_pixel(one: Convolution) -> float:
    groups = one.in_channels if one.depthwise else 1
    return 2.0 * one.kernel**2 * one.in_channels * one.out_channels / groups


def _side(one: Convolution, dtype: torch.dtype, sizes: Sizes) -> int:
    """How many rows the result has."""
    bytes_a_pixel = dtype.itemsize * max(one.out_channels, one.in_channels * one.stride**2)
    pixels = min(sizes.map_bytes / bytes_a_pixel, sizes.convolution_flops / _flops_a_pixel(one))
    return max(8, math.isqrt(int(pixels)))


def _call(one: Convolution, precision: Precision, way: Way, side: int, device: torch.device) -> _Call:
    dtype, groups = DTYPES[precision], one.in_channels if one.depthwise else 1
    x = _map(one.in_channels, side * one.stride, dtype, device)
    y = _map(one.out_channels, side, dtype, device)
    weight = torch.randn(one.out_channels, one.in_channels // groups, one.kernel, one.kernel, device=device).to(dtype)
    options = ([one.stride] * 2, [one.kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    mask = [way == "input", way == "weight", False]

    def run() -> object:
        if way == "forward":
            return torch.ops.aten.convolution(x, weight, None, *options)
        return torch.ops.aten.convolution_backward(y, x, weight, None, *options, mask)

    results = {"forward": y, "input": x, "weight": weight}
    return _Call(run, _flops_a_pixel(one) * side**2, x.nbytes + y.nbytes, results[way].nbytes)


def _map(channels: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    values = torch.rand(1, channels, side, side, device=device) - 0.5
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def matmul_rate(precision: Precision, sizes: Sizes, watch: Stopwatch) -> float:
    """The FLOPs per second of a square matrix product."""
    a = torch.rand(sizes.matmul_side, sizes.matmul_side, device=watch.device).to(DTYPES[precision])
    return 2.0 * sizes.matmul_side**3 / watch.seconds(lambda: a @ a)


def cached_gain(sizes: Sizes, watch: Stopwatch) -> float:
    """How much faster a product is on the pieces that our loops work on than on a map; 1 where pieces are maps."""
    if watch.device.type != "cpu":
        return 1.0

    def rate(size: int, calls: int) -> float:
        a, b = (torch.ones(size // 4, device=watch.device) for _ in range(2))

        def several() -> None:
            for _ in range(calls):
                a.mul_(b)

        return size * calls / watch.seconds(several)

    calls = max(1, sizes.map_bytes // CACHED_BYTES)
    return max(1.0, rate(CACHED_BYTES, calls) / rate(sizes.map_bytes, 1))


def fresh_rate(sizes: Sizes, watch: Stopwatch) -> float | None:
    """The bytes of pages that the system gives per second; None where that takes no time that can be measured."""
    if sizes.fresh_bytes == 0:
        return None
    kept = torch.zeros(sizes.fresh_bytes, dtype=torch.uint8, device=watch.device)
    used = watch.seconds(lambda: kept.fill_(1))
    fresh = watch.seconds(lambda: torch.empty_like(kept).fill_(1))
    return sizes.fresh_bytes / (fresh - used) if fresh > 1.1 * used else None
