"""One process of a calibration measures what its rank of a machine can do.

    python -m lartpc_ds.advise.calibrate.calibration_rank kernels|scratch|links DEVICE ...

Prints what it measured as one JSON line. The processes of one call are the ranks that share a machine in a job; they
wait for each other before each timed call, because two ranks on two cores are slower together than one of them alone.
Torch is all that it imports: the engine has a module of its own.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lartpc_ds.costs.hardware import Precision
from lartpc_ds.costs.kernels import (
    CONVOLUTIONS,
    SIZES,
    Sizes,
    Stopwatch,
    cached_gain,
    convolution_scratch,
    convolution_seconds,
    fresh_rate,
    matmul_rate,
)
from lartpc_ds.costs.operators import operator_rates

__all__ = ["LARGE_BYTES", "kernels", "links", "main", "scratch"]

LARGE_BYTES = 16 << 20
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_PATIENCE = timedelta(minutes=5)
_PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
_SMALL_REPEATS, _LARGE_REPEATS = 100, 9
_SCRATCH_FLOPS_SHARE = 0.5  # of what is timed: memory is measured at this size and at twice of it


def kernels(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Measure the rates of this rank while all ranks are busy."""
    together = int(os.environ["WORLD_SIZE"]) > 1
    watch = Stopwatch(device, sizes.repeats, dist.barrier if together else lambda: None)
    found: dict[str, Any] = {"convolutions": [], "matmul": {}, "operators": {}, "fresh": fresh_rate(sizes, watch)}
    found["cached_gain"] = cached_gain(sizes, watch)
    for number in _PRECISIONS[device.type]:
        found["matmul"][number] = matmul_rate(number, sizes, watch)
        for key, rates in operator_rates(number, sizes, watch).items():
            found["operators"].setdefault(key, {}).update(rates)
        for one in CONVOLUTIONS:
            for way in one.ways:
                seconds, flops = convolution_seconds(one, number, way, sizes, watch)
                row = {"precision": number, "way": way, **_shape(asdict(one))}
                found["convolutions"].append({**row, "flops_per_second": flops / seconds})
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["reserved_bytes"] = total - free - torch.cuda.memory_reserved(device)
    return found


def _shape(one: dict[str, Any]) -> dict[str, Any]:
    return {name: one[name] for name in ("kernel", "in_channels", "out_channels", "depthwise")}


def scratch(device: torch.device, sizes: Sizes) -> list[float]:
    """Measure the `scratch_share` of each convolution and way, in the order of `kernels`."""
    smaller = Sizes(**{**asdict(sizes), "convolution_flops": sizes.convolution_flops * _SCRATCH_FLOPS_SHARE})
    return [
        convolution_scratch(one, number, way, smaller, device)
        for number in _PRECISIONS[device.type]
        for one in CONVOLUTIONS
        for way in one.ways
    ]


def links(device: torch.device) -> dict[str, list[float]]:
    """Measure the seconds of a small and of a large message: to a peer and back, halved; summed; gathered."""
    ranks, rank = dist.get_world_size(), dist.get_rank()

    def there_and_back(tensor: torch.Tensor) -> None:
        if rank == 0:
            dist.send(tensor, 1)
            dist.recv(tensor, 1)
        elif rank == 1:
            dist.recv(tensor, 0)
            dist.send(tensor, 0)

    def gather(tensor: torch.Tensor) -> None:
        dist.all_gather_into_tensor(tensor, tensor[: len(tensor) // ranks].clone())

    kinds: dict[str, tuple[Callable[[torch.Tensor], object], int]] = {
        "send": (there_and_back, 2),
        "all_reduce": (dist.all_reduce, 1),
        "all_gather": (gather, 1),
    }
    found: dict[str, list[float]] = {}
    for name, (call, messages) in kinds.items():
        found[name] = []
        for elements, repeats in ((ranks, _SMALL_REPEATS), (LARGE_BYTES // 4 // ranks * ranks, _LARGE_REPEATS)):
            tensor = torch.ones(elements, device=device)
            watch = Stopwatch(device, repeats, dist.barrier)
            found[name].append(watch.seconds(partial(call, tensor)) / messages)
    return found


def main() -> None:
    """Entry of one process."""
    parser = argparse.ArgumentParser(prog="lartpc_ds.advise.calibrate.calibration_rank")
    parser.add_argument("mode", choices=["kernels", "scratch", "links"])
    parser.add_argument("device", choices=sorted(SIZES))
    parser.add_argument("--sizes", type=json.loads, required=True, help="fields of costs.kernels.Sizes as JSON")
    arguments = parser.parse_args()
    print(json.dumps(_measure(arguments.mode, arguments.device, Sizes(**arguments.sizes))))


def _measure(mode: str, kind: str, sizes: Sizes) -> Any:
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, int(os.environ["LOCAL_RANK"]))
    if kind == "cuda":
        torch.cuda.set_device(device)
    if mode == "scratch":
        return scratch(device, sizes)
    if int(os.environ["WORLD_SIZE"]) == 1:
        return kernels(device, sizes)
    dist.init_process_group(_BACKENDS[kind], timeout=_PATIENCE)
    found = links(device) if mode == "links" else kernels(device, sizes)
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
