"""`lartpc-ds bench pipeline`: what the cuts into stages cost, modelled from shapes alone and, if asked, measured.

The model needs no events and no memory: blocks are profiled on tensors without numbers, and the schedule is played
through. With `measure`, the same cuts train in fresh processes that share this machine, one a stage.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.circumstances import circumstances, run_folder
from lartpc_ds.advise.short_runs.short_run import ShortRun, medians, take_turns
from lartpc_ds.config import recipes
from lartpc_ds.costs.cuts import BlockCost, choose_bounds
from lartpc_ds.costs.schedule import step_ns
from lartpc_ds.costs.stages import block_costs, cut_rates, stage_shares
from lartpc_ds.exact.trace.dry_run import built_without_memory
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.training.prepare import absolute_paths, make_model
from lartpc_ds.training.sources import network_input

__all__ = ["bench"]

_CUTS = ("balanced", "parameters", "uniform")
# without micro-batches to fill it a pipeline is a queue, and DeepSpeed has it with ZeRO 0 and 1 only
_DEFAULTS = ("train.accumulate=8", "ds.zero_optimization.stage=1")


def bench(
    recipe: str, overrides: Sequence[str], *, stages: Sequence[int], measured: bool, repeats: int, steps: int
) -> dict[str, Any]:
    """Model every cut into each number of stages and, if `measured`, train it; the samples lie behind the medians."""
    progress = Console(stderr=True)
    settings = [*_DEFAULTS, *overrides]
    config, ds = recipes.load(recipe, settings)
    config = absolute_paths(config, Path.cwd())
    image, classes = network_input(config)
    model = built_without_memory(lambda: make_model(config, image[0], classes))
    micro_batches = config.train.accumulate
    costs = block_costs(config, ds, Layout(), model, image, cut_rates())
    rows: list[dict[str, Any]] = [{"stages": 1, "cuts": "none", **_modelled(costs, (0, len(costs)), micro_batches)}]
    for number in stages:
        for cuts in _CUTS:
            bounds = choose_bounds(cuts, costs, number, micro_batches)
            rows.append({"stages": number, "cuts": cuts, **_modelled(costs, bounds, micro_batches)})
    for row in rows:
        progress.print(
            f"{row['stages']} stage(s), {row['cuts']}: modelled {row['modelled_step_seconds']:.3f} s a step, "
            f"{row['modelled_peak_bytes'] / 2**30:.2f} GiB in the fullest stage"
        )
    if measured:
        _measure(rows, recipe, settings, repeats, steps, progress)
    return {
        **circumstances("pipeline", recipe, repeats if measured else 0),
        "image": image,
        "micro_batches": micro_batches,
        "layouts": rows,
    }


def _modelled(costs: Sequence[BlockCost], bounds: Bounds, micro_batches: int) -> dict[str, Any]:
    shares = stage_shares(costs, bounds, micro_batches)
    parts = [costs[start:stop] for start, stop in pairwise(bounds)]
    forward = [sum(cost.forward_ns for cost in part) for part in parts]
    backward = [sum(cost.backward_ns for cost in part) for part in parts]
    step = step_ns(forward, backward, micro_batches)
    busy = micro_batches * (sum(forward) + sum(backward)) / len(parts)
    return {
        "bounds": bounds,
        "first_blocks": [share.first for share in shares],
        "modelled_stage_bytes": [share.bytes for share in shares],
        "modelled_peak_bytes": max(share.bytes for share in shares),
        "modelled_step_seconds": step / 1e9,
        "modelled_idle_share": 1 - busy / step,
    }


def _measure(
    rows: list[dict[str, Any]], recipe: str, settings: Sequence[str], repeats: int, steps: int, progress: Console
) -> None:
    """Train every cut and add medians and samples to the rows."""
    names = [f"{row['stages']} stage(s), {row['cuts']}" for row in rows]
    with run_folder(recipe, settings, steps, progress) as folder:
        runs = {
            name: ShortRun(folder, layout=Layout(pipe=row["stages"]), stages=row["bounds"] if row["stages"] > 1 else ())
            for name, row in zip(names, rows, strict=True)
        }
        samples = take_turns(runs, repeats, progress.print)
    seconds, peaks = medians(samples, "step_seconds"), medians(samples, "peak_bytes")
    for name, row in zip(names, rows, strict=True):
        measured = {"measured_step_seconds": seconds[name], "measured_peak_bytes": int(peaks[name])}
        row.update(samples=samples[name], **measured)
