"""One process of a calibration: `python -m lartpc_ds.launch.calibration_rank kernels|scratch|links|engine ...`.

Prints what it measured as one JSON line. The processes of one call are the ranks that share a machine in a job; they
wait for each other before each timed call, because two ranks on two cores are slower together than one of them alone.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn

from lartpc_ds import session
from lartpc_ds.planning.hardware import Precision
from lartpc_ds.planning.kernels import (
    CONVOLUTIONS,
    SIZES,
    Sizes,
    Stopwatch,
    convolution_scratch,
    convolution_seconds,
    fresh_rate,
    matmul_rate,
)
from lartpc_ds.planning.operators import count_operators, operator_rates
from lartpc_ds.prepare import make_model
from lartpc_ds.runlog import RunFolder
from lartpc_ds.sources import preprocessing

__all__ = ["LARGE_BYTES", "engine", "kernels", "links", "main", "scratch"]

LARGE_BYTES = 16 << 20
_WARM_UP_STEPS = 2
_PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
_SMALL_REPEATS, _LARGE_REPEATS = 100, 9
_SCRATCH_FLOPS_SHARE = 0.5  # of what is timed: memory is measured at this size and at twice of it


def kernels(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Rates of this rank while all of them are busy."""
    together = int(os.environ["WORLD_SIZE"]) > 1
    watch = Stopwatch(device, sizes.repeats, dist.barrier if together else lambda: None)
    found: dict[str, Any] = {"convolutions": [], "matmul": {}, "operators": {}, "fresh": fresh_rate(sizes, watch)}
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
    """`scratch_share` of each convolution and way, in the order of `kernels`."""
    smaller = Sizes(**{**asdict(sizes), "convolution_flops": sizes.convolution_flops * _SCRATCH_FLOPS_SHARE})
    return [
        convolution_scratch(one, number, way, smaller, device)
        for number in _PRECISIONS[device.type]
        for one in CONVOLUTIONS
        for way in one.ways
    ]


def links(device: torch.device) -> dict[str, list[float]]:
    """Seconds of a small and of a large message: to a peer and back, halved; summed; gathered."""
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
            found[name].append(watch.seconds(lambda call=call, tensor=tensor: call(tensor)) / messages)  # type: ignore[misc]
    return found


def engine(path: Path) -> dict[str, float]:
    """A tiny run through the production path, and a hand-written forward and backward pass of its network.

    Returns:
        `step_seconds` and `peak_bytes` of a step, `pass_seconds` without the engine, and the number of its `operators`.
    """
    folder = RunFolder(path)
    session.train(folder, resume=False, stop_requested=lambda: False)
    lines = [line for line in folder.metrics() if "loss" in line][_WARM_UP_STEPS:]
    run, ds = session.open_run(folder)
    device = _device()
    model = make_model(run.config, run.job.planes, len(run.job.classes)).to(device).train()
    rows, cols = preprocessing(run.config, run.job.image_shape).shape
    images = torch.rand(run.config.data.batch, run.job.planes, rows, cols, device=device)
    watch = Stopwatch(device, len(lines))

    def passes() -> None:
        _passes(
            model,
            images,
            getattr(torch, ds["torch_autocast"]["dtype"]) if ds["torch_autocast"]["enabled"] else torch.float32,
        )

    return {
        "step_seconds": statistics.median(line["step_seconds"] for line in lines),
        "peak_bytes": max(line["peak_bytes"] for line in lines),
        "pass_seconds": watch.seconds(passes),
        "operators": count_operators(passes),
    }


def _passes(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> None:
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        scores = model(images.contiguous(memory_format=torch.channels_last))
    torch.autograd.backward(scores.float().logsumexp(1).sum())


def _device() -> torch.device:
    name = get_accelerator().device_name()
    return torch.device(name if name == "cpu" else f"{name}:{os.environ['LOCAL_RANK']}")


def main() -> None:
    """Entry of one process."""
    parser = argparse.ArgumentParser(prog="lartpc_ds.launch.calibration_rank")
    parser.add_argument("mode", choices=["kernels", "scratch", "links", "engine"])
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--sizes", type=json.loads, help="fields of planning.kernels.Sizes as JSON")
    arguments = parser.parse_args()
    print(json.dumps(_measure(arguments)))


def _measure(arguments: argparse.Namespace) -> Any:
    if arguments.mode == "engine":
        return engine(arguments.run_dir)
    device = _device()
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    sizes = Sizes(**arguments.sizes) if arguments.sizes else SIZES[device.type]
    if int(os.environ["WORLD_SIZE"]) == 1:
        return {"kernels": kernels, "scratch": scratch}[arguments.mode](device, sizes)
    dist.init_process_group(get_accelerator().communication_backend_name(), timeout=timedelta(minutes=5))
    found = links(device) if arguments.mode == "links" else kernels(device, sizes)
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
