"""`lartpc-ds bench step`: what our engine costs over plain PyTorch, in time and in memory, on one rank.

The two variants take turns in fresh processes, so that a machine that slows down slows both.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.circumstances import circumstances, run_folder
from lartpc_ds.advise.short_runs.short_run import ShortRun, by_figure, medians, take_turns
from lartpc_ds.config import recipes
from lartpc_ds.errors import UserError

__all__ = ["bench"]


def bench(recipe: str, overrides: Sequence[str], *, repeats: int, steps: int) -> dict[str, Any]:
    """Measure both programs: the medians, and the samples behind them."""
    _check(recipe, overrides)
    progress = Console(stderr=True)
    with run_folder(recipe, overrides, steps, progress) as folder:
        runs = {"ours": ShortRun(folder), "plain": ShortRun(folder, "plain")}
        samples = take_turns(runs, repeats, progress.print)
    seconds, peaks = medians(samples, "step_seconds"), medians(samples, "peak_bytes")
    pairs = zip(samples["ours"]["step_seconds"], samples["plain"]["step_seconds"], strict=True)
    peak_bytes = {name: int(peak) for name, peak in peaks.items()}
    return {
        **circumstances("step", recipe, repeats),
        "ours_step_seconds": seconds["ours"],
        "plain_step_seconds": seconds["plain"],
        "ratio": statistics.median(a / b for a, b in pairs),
        "ours_peak_bytes": peak_bytes["ours"],
        "plain_peak_bytes": peak_bytes["plain"],
        "memory_ratio": peak_bytes["ours"] / peak_bytes["plain"],
        "samples": by_figure(samples),
    }


def _check(recipe: str, overrides: Sequence[str]) -> None:
    config, ds = recipes.load(recipe, overrides)
    if ds["optimizer"]["type"] != "AdamW":
        raise UserError(f"optimizer.type = {ds['optimizer']['type']!r}: the plain loop of this bench has AdamW only")
    if config.train.accumulate != 1:
        raise UserError("train.accumulate: the plain loop of this bench does not accumulate; leave it at 1")
