"""`lartpc-ds bench tiles`: one process with all cores against a grid of tile ranks that share them.

The same network, events and total work, so on CPU the aim is a step as long and a peak a rank of one part in R x C. The
two take turns in fresh processes.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.circumstances import circumstances, run_folder
from lartpc_ds.advise.short_runs.short_run import ShortRun, take_turns
from lartpc_ds.layout import Layout

__all__ = ["bench"]


def bench(recipe: str, overrides: Sequence[str], *, rows: int, cols: int, repeats: int, steps: int) -> dict[str, Any]:
    """Measure one process and the grid: the medians, and the samples behind them."""
    progress = Console(stderr=True)
    with run_folder(recipe, overrides, steps, progress) as folder:
        runs = {"one": ShortRun(folder), "tiles": ShortRun(folder, layout=Layout(rows=rows, cols=cols))}
        samples = take_turns(runs, repeats, progress.print, ("step_seconds", "sent_bytes", "wait_seconds"))
    one, tiles = ({figure: statistics.median(values) for figure, values in kept.items()} for kept in samples.values())
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
