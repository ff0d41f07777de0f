"""The results of a scaling study: what was measured at each number of ranks, as a table and a CSV file.

Every figure is a median over the timed steps of a job, and then over the repeats of that job. The smallest and largest
repeat are a range and no confidence interval, because three repeats allow none.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from lartpc_ds.data.integrity import write_csv
from lartpc_ds.layout import Layout
from lartpc_ds.report.say import say

__all__ = ["PHASES", "Mode", "Point", "Row", "Sample", "Scaling", "print_rows", "rows_of", "write_ranks", "write_rows"]

Mode = Literal["data", "tiles", "pipe"]
Scaling = Literal["weak", "strong"]
PHASES = ("read", "forward", "backward", "update", "reduce", "halo", "stage", "other")
"""The phases of a step; a line of `metrics.jsonl` has `<phase>_seconds`."""
_NAMED = ("model", "mode", "scaling", "ranks")
"""The columns that say which point a line is of."""
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Point:
    """One size of one series of a study."""

    model: str
    mode: Mode
    """What more ranks share: other events, the tiles of one event, or the layers of the network."""
    scaling: Scaling
    """`weak`: events per rank fixed; `strong`: the global batch fixed."""
    ranks: int
    layout: Layout
    batch: int
    accumulate: int
    threads_per_rank: int | None
    """None where ranks compute on devices of their own."""

    @property
    def global_batch(self) -> int:
        """The events of one optimizer step of all ranks."""
        return self.batch * self.accumulate * self.layout.data

    @property
    def series(self) -> tuple[str, Mode, Scaling]:
        """What the points of one line have in common."""
        return self.model, self.mode, self.scaling


@dataclass(frozen=True, slots=True)
class Sample:
    """One repeat of a job, which has ended."""

    name: str
    repeat: int
    """Counted from 1."""
    figures: dict[str, float]
    """Medians over the timed steps, and the largest `peak_bytes`; empty if the job has not trained to its end."""
    failure: str = ""
    busy_seconds: list[list[float]] = field(default_factory=list)
    """What each rank has spent on its own work in each timed step: [step][rank]."""


@dataclass(frozen=True, slots=True)
class Row:
    """One point with what was measured and derived."""

    point: Point
    repeats: int
    """How many have trained to their end."""
    figures: dict[str, float]
    """The measured and derived columns of the table, in seconds and bytes; empty if no repeat has trained."""
    failure: str = ""


def rows_of(points: Sequence[Point], samples: Mapping[Point, Sequence[Sample]]) -> list[Row]:
    """The rows of all points; what is relative is so to the smallest number of ranks in the series that has trained."""
    rows = [_measured(point, samples.get(point, ())) for point in points]
    bases: dict[tuple[str, Mode, Scaling], Row] = {}
    for row in sorted(rows, key=lambda row: row.point.ranks):
        if row.figures:
            bases.setdefault(row.point.series, row)
    return [_compared(row, bases[row.point.series]) if row.figures else row for row in rows]


def _measured(point: Point, samples: Sequence[Sample]) -> Row:
    done = [sample.figures for sample in samples if not sample.failure]
    failure = next((sample.failure for sample in samples if sample.failure), "")
    if not done:
        return Row(point, 0, {}, failure)
    figures = {name: statistics.median(one[name] for one in done) for name in done[0]}
    figures["peak_bytes"] = max(one["peak_bytes"] for one in done)
    figures["step_seconds_low"] = min(one["step_seconds"] for one in done)
    figures["step_seconds_high"] = max(one["step_seconds"] for one in done)
    figures["events_per_second"] = point.global_batch / figures["step_seconds"]
    return Row(point, len(done), figures, failure)


def _compared(row: Row, base: Row) -> Row:
    speedup = row.figures["events_per_second"] / base.figures["events_per_second"]
    efficiency = speedup * base.point.ranks / row.point.ranks
    return replace(row, figures={**row.figures, "speedup": speedup, "efficiency": efficiency})


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV, in seconds and bytes; what was not measured is empty."""
    axes = ("pipe", "data", "rows", "cols")
    shared = ("batch", "accumulate", "global_batch", "threads_per_rank")
    figures = (
        *("step_seconds", "step_seconds_low", "step_seconds_high", "events_per_second", "speedup", "efficiency"),
        *(f"{phase}_seconds" for phase in PHASES),
        *("peak_bytes", "straggler_factor"),
    )
    lines = [
        [
            *(getattr(row.point, name) for name in _NAMED),
            *(getattr(row.point.layout, name) for name in axes),
            *(getattr(row.point, name) for name in shared),
            row.repeats,
            *(row.figures.get(name, "") for name in figures),
            row.failure,
        ]
        for row in rows
    ]
    write_csv(path, [*_NAMED, *axes, *shared, "repeats", *figures, "failure"], lines)


def write_ranks(path: Path, points: Sequence[Point], samples: Mapping[Point, Sequence[Sample]]) -> None:
    """Write as CSV what every rank has spent on its own work in every timed step, in seconds."""
    lines = [
        [*(getattr(point, name) for name in _NAMED), sample.repeat, step, rank, seconds]
        for point in points
        for sample in samples.get(point, ())
        for step, ranks in enumerate(sample.busy_seconds, start=1)
        for rank, seconds in enumerate(ranks)
    ]
    write_csv(path, [*_NAMED, "repeat", "step", "rank", "busy_seconds"], lines)


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print a table per network; below it the reasons of points that have not trained."""
    for model in dict.fromkeys(row.point.model for row in rows):
        table = Table(
            title=f"scaling of {model}", title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0)
        )
        table.add_column("series", no_wrap=True)
        for heading in ("ranks", "events\n/step", "s per\nstep", "range", "events/s", "effi-\nciency"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("GiB\n/rank", "strag-\ngler"):
            table.add_column(heading, justify="right", no_wrap=True)
        own = [row for row in rows if row.point.model == model]
        for row in own:
            table.add_row(*_cells(row))
        console.print(table)
        for row in own:
            if row.failure:
                say(console, f"{row.point.mode}, {row.point.scaling}, {row.point.ranks} rank(s): {row.failure}")


def _cells(row: Row) -> list[str]:
    point, figures = row.point, row.figures
    known = [f"{point.mode}, {point.scaling}", str(point.ranks), str(point.global_batch)]
    if not figures:
        return known + ["-"] * 6
    low, high = figures["step_seconds_low"], figures["step_seconds_high"]
    return [
        *known,
        f"{figures['step_seconds']:.3g}",
        f"{low:.2g}-{high:.2g}",
        f"{figures['events_per_second']:.3g}",
        f"{figures['efficiency']:.0%}",
        f"{figures['peak_bytes'] / _GIB:.2f}",
        f"{figures['straggler_factor']:.2f}",
    ]
