"""`lartpc-ds bench planner`: what the planner says of a layout against what the layout takes on this machine.

Two parts that can be done apart, because measuring takes an hour and predicting a minute: a file of measured samples
serves every later version of the model. Times are judged for 1 and 2 ranks only: more ranks than cores would wait for
each other's arithmetic and not for messages.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.circumstances import circumstances
from lartpc_ds.advise.bench.planner_layouts import RECIPE, MeasuredLayout, chosen
from lartpc_ds.advise.bench.planner_measure import loaded, measure_layouts
from lartpc_ds.advise.calibrate.calibrate import calibrate
from lartpc_ds.advise.search.planner import problem_of
from lartpc_ds.advise.search.search import CostOf
from lartpc_ds.advise.short_runs.short_run import Samples
from lartpc_ds.costs.hardware import Hardware, load
from lartpc_ds.costs.problem import Cost
from lartpc_ds.errors import UserError

__all__ = ["bench", "figures"]

_RANKS_WITH_TIMES = 2


def bench(
    cost: CostOf,
    *,
    only: Sequence[str] = (),
    repeats: int = 3,
    steps: int = 2,
    hardware: str | None = None,
    measured: Path | None = None,
) -> dict[str, Any]:
    """Measure, predict and compare: the figures, and the samples behind the medians.

    Args:
        cost: predicts what a candidate takes.
        only: beginnings of the names of the layouts to compare; none: all.
        repeats: fresh processes per layout.
        steps: timed steps of a process.
        hardware: a file or a preset; None: this machine is measured first.
        measured: a result of an earlier call, whose samples are taken; None: the layouts are measured.

    Raises:
        UserError: an unknown layout, no such hardware, or a file of samples that is none or has other layouts.
    """
    progress = Console(stderr=True)
    layouts = chosen(only)
    earlier = None if measured is None else _read(measured, layouts)
    machine = _hardware(hardware, progress)
    # first, because what it finds wrong would cost an hour of measuring
    predicted = {
        layout.name: cost(problem_of(*loaded(layout)), layout.candidate, machine, layout.candidate.layout.world_size)
        for layout in layouts
    }
    where, samples = earlier or (
        circumstances("planner", RECIPE, repeats),
        measure_layouts(layouts, repeats=repeats, steps=steps, progress=progress),
    )
    rows = []
    for layout in layouts:
        row = _row(layout, predicted[layout.name], samples[layout.name])
        rows.append(row)
        progress.print(
            f"{layout.name}: {row['predicted_peak_bytes'] / 2**20:.0f} MiB predicted, "
            f"{row['measured_peak_bytes'] / 2**20:.0f} measured; {row['predicted_step_seconds']:.2f} s predicted, "
            f"{row['measured_step_seconds']:.2f} measured",
            highlight=False,
            soft_wrap=True,
        )
    return {
        **where,
        "hardware": {"name": machine.name, "source": machine.source},
        "layouts": rows,
        **figures(rows, machine.memory_bytes),
    }


def _hardware(name: str | None, progress: Console) -> Hardware:
    if name is not None:
        return load(name)
    with tempfile.TemporaryDirectory() as scratch:
        return calibrate(Path(scratch) / "hardware.toml", progress)


def _row(layout: MeasuredLayout, predicted: Cost, samples: Samples) -> dict[str, Any]:
    return {
        "name": layout.name,
        "group": layout.group,
        "ranks": layout.candidate.layout.world_size,
        "global_batch": layout.candidate.global_batch,
        "predicted_peak_bytes": predicted.memory.total,
        "measured_peak_bytes": int(statistics.median(samples["peak_bytes"])),
        "predicted_step_seconds": predicted.time.total,
        "measured_step_seconds": statistics.median(samples["step_seconds"]),
        "parts": {"memory": asdict(predicted.memory), "time": asdict(predicted.time)},
        "measured_as": layout.as_dict(),
        "samples": samples,
    }


def _read(path: Path, layouts: Sequence[MeasuredLayout]) -> tuple[dict[str, Any], dict[str, Samples]]:
    """Read where and when a file's samples were measured, and the samples of `layouts`."""
    told = f"--measured {path}"
    try:
        tree = json.loads(path.read_text())
        rows = {row["name"]: row for row in tree["layouts"]}
        where = {key: tree[key] for key in ("bench", "recipe", "device", "threads", "versions", "commit", "repeats")}
    except OSError as error:
        raise UserError(f"{told}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{told}: not what `lartpc-ds bench planner --json` prints; save its last line") from None
    samples = {}
    for layout in layouts:
        row = rows.get(layout.name)
        if row is None:
            raise UserError(f"{told}: has no {layout.name!r}; measure again, or name what it has with --only")
        if row["measured_as"] != json.loads(json.dumps(layout.as_dict())):
            raise UserError(
                f"{told}: {layout.name!r} was another layout then; measure again, or leave it out by --only"
            )
        samples[layout.name] = row["samples"]
    return where, samples


def figures(rows: Sequence[Mapping[str, Any]], memory_bytes: int) -> dict[str, Any]:
    """Compute how far off the predictions are, and how much slower than the fastest layout the recommended one is.

    Args:
        rows: as `bench` makes them.
        memory_bytes: of the machine, which the ranks of a layout share.

    Returns:
        `memory_error_*` over all rows and `time_error_*` over those of 1 and 2 ranks, as parts of what was measured;
        `groups` of the same network and images, for each the recommended and the fastest layout of 1 and 2 ranks and
        the ratio of their measured seconds an event; `best_rank_ratio`, the worst of these. None where no row counts.
    """
    timed = [row for row in rows if row["ranks"] <= _RANKS_WITH_TIMES]
    memory = [_error(row, "peak_bytes") for row in rows]
    time = [_error(row, "step_seconds") for row in timed]
    groups = [
        ranked
        for name in dict.fromkeys(row["group"] for row in timed)
        if (ranked := _ranked(name, [row for row in timed if row["group"] == name], memory_bytes)) is not None
    ]
    return {
        "memory_error_median": statistics.median(memory) if memory else None,
        "memory_error_max": max(memory, default=None),
        "time_error_median": statistics.median(time) if time else None,
        "time_error_max": max(time, default=None),
        "best_rank_ratio": max((group["ratio"] for group in groups), default=None),
        "groups": groups,
    }


def _error(row: Mapping[str, Any], of: str) -> float:
    return float(abs(row[f"predicted_{of}"] / row[f"measured_{of}"] - 1))


def _ranked(name: str, rows: Sequence[Mapping[str, Any]], memory_bytes: int) -> dict[str, Any] | None:
    """None where there is nothing to choose, or the planner says that nothing fits."""

    def an_event(row: Mapping[str, Any], how: str) -> float:
        return float(row[f"{how}_step_seconds"] / row["global_batch"])

    offered = [row for row in rows if row["predicted_peak_bytes"] * row["ranks"] <= memory_bytes]
    if len(rows) < 2 or not offered:
        return None
    recommended = min(offered, key=lambda row: an_event(row, "predicted"))
    fastest = min(rows, key=lambda row: an_event(row, "measured"))  # all that ran did fit
    return {
        "group": name,
        "recommended": recommended["name"],
        "fastest": fastest["name"],
        "ratio": an_event(recommended, "measured") / an_event(fastest, "measured"),
    }
