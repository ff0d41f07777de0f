"""A tiny run of a calibration, on each rank of a launcher.

    python -m lartpc_ds.advise.calibrate.calibration_engine RUN_DIR

The production path, so that its own work and what it loads are in the figures; then the same network's forward and
backward pass without it, whose seconds a hand-written loop would take, too.
"""

import json
import os
import statistics
import sys
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.kernels import Stopwatch
from lartpc_ds.costs.operators import count_operators
from lartpc_ds.training import session
from lartpc_ds.training.prepare import make_model
from lartpc_ds.training.sources import preprocessing

__all__ = ["engine", "main"]

_WARM_UP_STEPS = 2


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

    autocast = ds["torch_autocast"]
    dtype = getattr(torch, autocast["dtype"]) if autocast["enabled"] else torch.float32

    def passes() -> None:
        _passes(model, images, dtype)

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
    """Entry of one process: prints what it measured as one JSON line."""
    print(json.dumps(engine(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
