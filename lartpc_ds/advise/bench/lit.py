"""`lartpc-ds bench lit`: plain PyTorch against computing only what is lit, on one rank, event by event.

Both variants are the same hand-written loop on the same events, in the same order, in fresh processes that take turns.
What a plain step takes does not depend on the event, so plain runs on few events; what a lit step takes does, so the
medians are over events, and the brightest event is told apart.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.circumstances import circumstances, run_folder
from lartpc_ds.advise.short_runs.short_run import WARM_UP_STEPS, ShortRun
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.jobs.together import PINNED
from lartpc_ds.training.session import open_run

__all__ = ["bench"]

_PLAIN_EVENTS = 2
Lines = list[dict[str, Any]]


def bench(recipe: str, overrides: Sequence[str], *, repeats: int, steps: int) -> dict[str, Any]:
    """Measure both programs: the medians over events and repeats, and the samples behind them."""
    progress = Console(stderr=True)
    times: dict[str, Lines] = {"plain": [], "lit": []}
    peaks: dict[str, Lines] = {"plain": [], "lit": []}
    with run_folder(recipe, overrides, min(steps, _PLAIN_EVENTS), progress) as short:
        with run_folder(recipe, overrides, steps, progress) as long:
            memory = open_run(long)[0].config.memory
            lit = memory if memory.lit_block else memory.model_copy(update={"lit_block": "auto"})
            runs = {
                "plain": ShortRun(short, "plain", memory=MemoryConfig()),
                "lit": ShortRun(long, "plain", memory=lit),
            }
            for repeat in range(repeats):
                for name in runs if repeat % 2 == 0 else reversed(runs):
                    times[name] += runs[name].steps({})[WARM_UP_STEPS:]
                    peaks[name] += runs[name].steps(PINNED)[WARM_UP_STEPS:]
                    seconds, peak = _median(times[name], "step_seconds"), _median(peaks[name], "peak_bytes")
                    progress.print(
                        f"{repeat + 1}/{repeats} {name}: {seconds:.3f} s and {peak / 2**20:.0f} MiB per event"
                    )
    return {
        **circumstances("lit", recipe, repeats),
        **_ratios(times, peaks),
        "events": steps,
        "lit_share": _median(times["lit"], "lit_share"),
        "brightest": _brightest(times, peaks),
        "samples": {"times": times, "peaks": peaks},
    }


def _median(lines: Lines, figure: str) -> float:
    return float(statistics.median(line[figure] for line in lines))


def _ratios(times: dict[str, Lines], peaks: dict[str, Lines]) -> dict[str, float]:
    seconds = {name: _median(lines, "step_seconds") for name, lines in times.items()}
    peak = {name: _median(lines, "peak_bytes") for name, lines in peaks.items()}
    return {
        "plain_step_seconds": seconds["plain"],
        "lit_step_seconds": seconds["lit"],
        "time_ratio": seconds["lit"] / seconds["plain"],
        "plain_peak_bytes": int(peak["plain"]),
        "lit_peak_bytes": int(peak["lit"]),
        "memory_ratio": peak["lit"] / peak["plain"],
    }


def _brightest(times: dict[str, Lines], peaks: dict[str, Lines]) -> dict[str, float]:
    """The figures of the event with the largest share; every process takes the events in the same order."""
    slow, large = (max(lines["lit"], key=lambda line: float(line["lit_share"])) for lines in (times, peaks))
    return {
        "lit_share": slow["lit_share"],
        "step_seconds": slow["step_seconds"],
        "time_ratio": slow["step_seconds"] / _median(times["plain"], "step_seconds"),
        "peak_bytes": large["peak_bytes"],
        "memory_ratio": large["peak_bytes"] / _median(peaks["plain"], "peak_bytes"),
    }
