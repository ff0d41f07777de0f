"""`lartpc-ds bench memory`: plain PyTorch against each lever on activations, on one rank, in time and in memory.

All variants are the same hand-written loop on the same events and network, and take turns in fresh processes: what the
engine adds (copies of weights, see `bench step`) is not a lever's doing.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lartpc_ds.advise.bench.circumstances import circumstances, run_folder
from lartpc_ds.advise.short_runs.short_run import ShortRun, by_figure, medians, take_turns
from lartpc_ds.config.ds_config import precision
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.meter import Meter, traced_autocast
from lartpc_ds.costs.profile import profile
from lartpc_ds.costs.stages import cut_rates
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.trace.dry_run import ReadableConstants
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import blocks
from lartpc_ds.training.prepare import make_model, plan_of, strips_of, without_data
from lartpc_ds.training.session import open_run

__all__ = ["bench"]

_STRIPS = 12
_LEVERS = {
    "plain": MemoryConfig(),
    "lean_norm": MemoryConfig(lean_norm=True),
    "recompute_block": MemoryConfig(recompute="block"),
    "lean_norm+recompute_block": MemoryConfig(lean_norm=True, recompute="block"),
}
_STREAM = {"stream": MemoryConfig(stream_strips=_STRIPS)}


def bench(recipe: str, overrides: Sequence[str], *, repeats: int, steps: int) -> dict[str, Any]:
    """Measure every lever: the medians, and the samples behind them."""
    progress = Console(stderr=True)
    with run_folder(recipe, overrides, steps, progress) as folder:
        levers = _LEVERS | (_STREAM if open_run(folder)[0].config.model.norm == "layer" else {})
        runs = {name: ShortRun(folder, "plain", memory=memory) for name, memory in levers.items()}
        samples = take_turns(runs, repeats, progress.print)
        of_blocks = _blocks(folder)
        traced = {name: _traced(folder, memory) for name, memory in levers.items()}
    peaks, times = medians(samples, "peak_bytes"), by_figure(samples)["step_seconds"]
    return {
        **circumstances("memory", recipe, repeats),
        "levers": [
            {
                "name": name,
                "peak_bytes": int(peaks[name]),
                "traced_bytes": traced[name],
                "step_seconds": statistics.median(times[name]),
                "memory_ratio": peaks[name] / peaks["plain"],
                "time_ratio": statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True)),
            }
            for name in levers
        ],
        "blocks": of_blocks,
        "samples": by_figure(samples),
    }


def _blocks(folder: RunFolder) -> list[dict[str, Any]]:
    """What the plain network keeps, block by block, of one micro-batch."""
    run, ds = open_run(folder)
    model, image = without_data(run.config, run.job)
    costs = profile(blocks(model), (run.config.data.batch, *image), precision(ds), 0, cut_rates())
    return [{"name": cost.name, "saved_bytes": cost.saved_bytes, "output_bytes": cost.output_bytes} for cost in costs]


def _traced(folder: RunFolder, memory: MemoryConfig) -> int:
    """The peak of a step with the levers, from shapes alone."""
    run, ds = open_run(folder)
    config, classes = run.config.model_copy(update={"memory": memory}), len(run.job.classes)
    meta, image = without_data(config, run.job)
    plan, strips = plan_of(config, Layout(), meta, image), strips_of(config, Layout(), meta, image)
    with FakeTensorMode(allow_non_fake_inputs=True), ReadableConstants():
        model = make_model(config, run.job.planes, classes).train()
        if memory != MemoryConfig():
            apply(model, memory, plan, Tiles(1, 1, Alone(), Alone(), Alone()), strips)
        return step_peak_bytes(model, torch.empty(config.data.batch, *image), precision(ds))


def step_peak_bytes(model: nn.Module, images: Tensor, precision: str) -> int:
    """The peak of a step on fake tensors: images, weights, their gradients, AdamW's states and activations.

    What kernels take for themselves while they run is not seen; on a CPU that is up to four times the largest map of a
    convolution whose weight gradient is due.
    """
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # the optimizer has no states before its first step
    optimizer.zero_grad()
    images = images.contiguous(memory_format=torch.channels_last)
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    meter = Meter()
    meter.hold(model, images, *states)
    with meter:
        with traced_autocast(precision):
            scores = model(images)
        torch.autograd.backward(scores.float().logsumexp(1).sum())
        optimizer.step()
    return meter.peak.total
