"""`lartpc-ds bench step`: what our engine costs over plain PyTorch, in time and in memory, on one rank.

The two variants take turns in fresh processes, so that a machine that slows down slows both.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.measure import PINNED, WARM_UP_STEPS, circumstances, measure, run_folder
from lartpc_ds.config import recipes
from lartpc_ds.errors import UserError

__all__ = ["bench"]

_VARIANTS = ("ours", "plain")


def bench(recipe: str, overrides: Sequence[str], *, repeats: int, steps: int) -> dict[str, Any]:
    """Measure; keys as the architecture page fixes them, and the samples behind the medians."""
    progress = Console(stderr=True)
    times: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    peaks: dict[str, list[int]] = {name: [] for name in _VARIANTS}
    _check(recipe, overrides)
    with run_folder(recipe, overrides, steps, progress) as folder:
        for repeat in range(repeats):
            # the other one first every second time: whatever follows a pause may have an advantage
            for name in _VARIANTS if repeat % 2 == 0 else reversed(_VARIANTS):
                lines = measure(name, folder, 1, {})
                seconds = [line["step_seconds"] for line in lines[WARM_UP_STEPS:]]
                times[name].append(statistics.median(seconds))
                peaks[name].append(measure(name, folder, 1, PINNED)[-1]["peak_bytes"])
                peak_mib = peaks[name][-1] / 2**20
                progress.print(
                    f"{repeat + 1}/{repeats} {name}: {times[name][-1]:.3f} s a step, peak {peak_mib:.0f} MiB"
                )
    seconds_of = {name: statistics.median(values) for name, values in times.items()}
    bytes_of = {name: int(statistics.median(values)) for name, values in peaks.items()}
    return {
        **circumstances("step", recipe, repeats),
        "ours_step_seconds": seconds_of["ours"],
        "plain_step_seconds": seconds_of["plain"],
        "ratio": statistics.median(a / b for a, b in zip(times["ours"], times["plain"], strict=True)),
        "ours_peak_bytes": bytes_of["ours"],
        "plain_peak_bytes": bytes_of["plain"],
        "memory_ratio": bytes_of["ours"] / bytes_of["plain"],
        "samples": {"step_seconds": times, "peak_bytes": peaks},
    }


def _check(recipe: str, overrides: Sequence[str]) -> None:
    config, ds = recipes.load(recipe, overrides)
    if ds["optimizer"]["type"] != "AdamW":
        raise UserError(f"optimizer.type = {ds['optimizer']['type']!r}: the plain loop of this bench has AdamW only")
    if config.train.accumulate != 1:
        raise UserError("train.accumulate: the plain loop of this bench does not accumulate; leave it at 1")
