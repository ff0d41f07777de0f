"""One rank of a short run, in a process of its own: `python -m lartpc_ds.advise.short_runs.rank PROGRAM RUN_DIR`.

`ours` is the production path, from the run folder to the metrics lines. `plain` is what a physicist would write by hand
for the same network, events, precision and optimizer, without this project's engine. `engine` is `ours`, and then the
same network's forward and backward pass alone, so that the difference is the engine's own work. The others are loops
for several ranks: see `short_runs.baselines`.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lartpc_ds.advise.short_runs.baselines import (
    Lines,
    autocast,
    ddp,
    deepspeed_pipe,
    deepspeed_zero,
    fsdp2,
    hand_written,
    timed_steps,
)
from lartpc_ds.advise.short_runs.short_run import steps_of
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.kernels import Stopwatch
from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.costs.operators import count_operators
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.light import lit_pixels
from lartpc_ds.exact.memory.lit_plan import LitPlan
from lartpc_ds.layout import Layout
from lartpc_ds.training import session
from lartpc_ds.training.engine import finish
from lartpc_ds.training.loader import collate
from lartpc_ds.training.prepare import Run, lit_of, make_model, plan_of, strips_of
from lartpc_ds.training.sources import preprocessing, reopen_source

__all__ = ["main"]

_ENGINE_WARM_UP_STEPS = 2


def ours(folder: RunFolder) -> Lines:
    """Train as `lartpc-ds train` does, without the launcher; the metrics lines of the steps."""
    session.train(folder, resume=False, stop_requested=lambda: False)
    return steps_of(folder)


def plain(folder: RunFolder) -> Lines:
    """Train by a hand-written loop; with the run's levers on activations, if it has any, on the same model.

    All such runs of a folder take the same events in the same order. The peak of a step is its own.
    """
    run, ds = session.open_run(folder)
    device = _device()
    memory = PeakMemory(device)
    model = make_model(run.config, run.job.planes, len(run.job.classes)).to(device).train()
    lit = _with_levers(model, run)
    step = hand_written(model, ds, _batches(run), device)
    lines = timed_steps(step, run.job.max_steps, memory)
    if lit is not None:
        for line, (images, _) in zip(lines, _batches(run), strict=False):  # the same events once more
            line["lit_share"] = lit.shares(lit_pixels(images))[0]
    return lines


def _with_levers(model: nn.Module, run: Run) -> LitPlan | None:
    """Apply the run's levers on activations to the model of one rank; return its lit plan, if it has one."""
    if run.config.memory == MemoryConfig():
        return None
    image = (run.job.planes, *preprocessing(run.config, run.job.image_shape).shape)
    plan, strips = plan_of(run.config, Layout(), model, image), strips_of(run.config, Layout(), model, image)
    lit = lit_of(run.config, Layout(), model, image)
    apply(model, run.config.memory, plan, Tiles(1, 1, Alone(), Alone(), Alone()), strips, lit)
    return lit


def _batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    source = reopen_source(run.config, run.index, run.job.image_shape, run.job.task)
    dataset = EventDataset(source, run.index.positions("train"), sparse=run.config.memory.lit_block != 0)
    order = torch.Generator().manual_seed(run.config.data.seed)
    loader = DataLoader(
        dataset, run.config.data.batch, shuffle=True, drop_last=True, collate_fn=collate, generator=order
    )
    epochs = chain.from_iterable(repeat(loader))
    return map(itemgetter(0, 1), epochs)  # a generator's frame would hold the images through the whole step


def engine(folder: RunFolder) -> dict[str, float]:
    """Train as `ours` does, then time the network's passes alone.

    Returns:
        `step_seconds` and `peak_bytes` of a step, `pass_seconds` without the engine, and the number of its `operators`.
    """
    lines = ours(folder)[_ENGINE_WARM_UP_STEPS:]
    run, ds = session.open_run(folder)
    device = _device()
    model = make_model(run.config, run.job.planes, len(run.job.classes)).to(device).train()
    rows, cols = preprocessing(run.config, run.job.image_shape).shape
    images = torch.rand(run.config.data.batch, run.job.planes, rows, cols, device=device)

    def passes() -> None:
        with autocast(ds, device):
            scores = model(images.contiguous(memory_format=torch.channels_last))
        torch.autograd.backward(scores.float().logsumexp(1).sum())

    return {
        "step_seconds": statistics.median(line["step_seconds"] for line in lines),
        "peak_bytes": max(line["peak_bytes"] for line in lines),
        "pass_seconds": Stopwatch(device, len(lines)).seconds(passes),
        "operators": count_operators(passes),
    }


def _device() -> torch.device:
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


_PROGRAMS: dict[str, Callable[[RunFolder], Lines | dict[str, float]]] = {
    "ours": ours,
    "plain": plain,
    "engine": engine,
    "ddp": ddp,
    "fsdp2": fsdp2,
    "deepspeed_zero": deepspeed_zero,
    "deepspeed_pipe": deepspeed_pipe,
}


def main() -> None:
    """Run one program and print what it gives as one line of JSON."""
    name, path = sys.argv[1], Path(sys.argv[2])
    said = _PROGRAMS[name](RunFolder(path))
    if dist.is_initialized():
        finish()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
