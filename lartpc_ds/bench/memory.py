"""`lartpc-ds bench memory`: plain PyTorch against each lever on activations, on one rank, in time and in memory.

All variants are the same hand-written loop on the same events and network, and take turns in fresh processes: what the
engine adds (copies of weights, see `bench step`) is not a lever's doing.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lartpc_ds.bench.measure import PINNED, WARM_UP_STEPS, circumstances, measure, run_folder, with_memory
from lartpc_ds.config import MemoryConfig
from lartpc_ds.session import open_run

__all__ = ["bench"]

_STRIPS = 8
_LEVERS = {
    "plain": MemoryConfig(),
    "lean_norm": MemoryConfig(lean_norm=True),
    "recompute_block": MemoryConfig(recompute="block"),
    "lean_norm+recompute_block": MemoryConfig(lean_norm=True, recompute="block"),
}
_STREAM = {"stream": MemoryConfig(stream_strips=_STRIPS)}


def bench(recipe: str, overrides: Sequence[str], *, repeats: int, steps: int) -> dict[str, Any]:
    """Measure; keys as the architecture page fixes them, and the samples behind the medians."""
    progress = Console(stderr=True)
    with run_folder(recipe, overrides, steps, progress) as folder:
        levers = _LEVERS | (_STREAM if open_run(folder)[0].config.model.norm == "layer" else {})
        times: dict[str, list[float]] = {name: [] for name in levers}
        peaks: dict[str, list[int]] = {name: [] for name in levers}
        for repeat in range(repeats):
            for name in levers if repeat % 2 == 0 else reversed(levers):
                with with_memory(folder, levers[name]):
                    lines = measure("plain", folder, 1, {})
                    peak = measure("plain", folder, 1, PINNED)[-1]["peak_bytes"]
                times[name].append(statistics.median(line["step_seconds"] for line in lines[WARM_UP_STEPS:]))
                peaks[name].append(peak)
                progress.print(
                    f"{repeat + 1}/{repeats} {name}: {times[name][-1]:.3f} s a step, peak {peak / 2**20:.0f} MiB"
                )
    plain_peak = statistics.median(peaks["plain"])
    return {
        **circumstances("memory", recipe, repeats),
        "levers": [
            {
                "name": name,
                "peak_bytes": int(statistics.median(peaks[name])),
                "step_seconds": statistics.median(times[name]),
                "memory_ratio": statistics.median(peaks[name]) / plain_peak,
                "time_ratio": statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True)),
            }
            for name in levers
        ],
        "samples": {"step_seconds": times, "peak_bytes": peaks},
    }
