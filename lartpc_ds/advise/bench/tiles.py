"""`lartpc-ds bench tiles`: one process with all cores against a grid of tile ranks that share them.

The same network, events and total work, so on CPU the aim is a step as long and a peak a rank of one part in R x C. The
two take turns in fresh processes.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.measure import PINNED, WARM_UP_STEPS, circumstances, measure, run_folder, with_layout
from lartpc_ds.layout import Layout

__all__ = ["bench"]


def bench(recipe: str, overrides: Sequence[str], *, rows: int, cols: int, repeats: int, steps: int) -> dict[str, Any]:
    """Measure; keys as the architecture page fixes them, and the samples behind the medians."""
    progress = Console(stderr=True)
    layouts = {"one": Layout(), "tiles": Layout(rows=rows, cols=cols)}
    samples: dict[str, dict[str, list[float]]] = {
        name: {"step_seconds": [], "peak_bytes": [], "sent_bytes": [], "wait_seconds": []} for name in layouts
    }
    with run_folder(recipe, overrides, steps, progress) as folder:
        for repeat in range(repeats):
            for name in layouts if repeat % 2 == 0 else reversed(layouts):
                with with_layout(folder, layouts[name]):
                    timed = measure("ours", folder, layouts[name].world_size, {})[WARM_UP_STEPS:]
                    pinned = measure("ours", folder, layouts[name].world_size, PINNED)
                for key in ("step_seconds", "sent_bytes", "wait_seconds"):
                    samples[name][key].append(statistics.median(line.get(key, 0) for line in timed))
                samples[name]["peak_bytes"].append(pinned[-1]["peak_bytes"])
                progress.print(
                    f"{repeat + 1}/{repeats} {name}: {samples[name]['step_seconds'][-1]:.3f} s a step, "
                    f"peak {samples[name]['peak_bytes'][-1] / 2**20:.0f} MiB a rank"
                )
    median = {name: {key: statistics.median(values) for key, values in kept.items()} for name, kept in samples.items()}
    one, tiles = median["one"], median["tiles"]
    pairs = zip(samples["tiles"]["step_seconds"], samples["one"]["step_seconds"], strict=True)
    return {
        **circumstances("tiles", recipe, repeats),
        "rows": rows,
        "cols": cols,
        "one_step_seconds": one["step_seconds"],
        "tiles_step_seconds": tiles["step_seconds"],
        "step_ratio": statistics.median(a / b for a, b in pairs),
        "one_peak_bytes": int(one["peak_bytes"]),
        "rank_peak_bytes": int(tiles["peak_bytes"]),
        "memory_ratio": tiles["peak_bytes"] / one["peak_bytes"],
        "halo_bytes": int(tiles["sent_bytes"]),
        "comm_share": tiles["wait_seconds"] / tiles["step_seconds"],
        "samples": samples,
    }
