"""The results of a tuning: what was predicted and measured for every trial, as a table, a CSV file and a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lartpc_ds.data.integrity import write_csv

__all__ = ["OUT_OF_MEMORY", "TrialResult", "draw_results", "fastest", "print_results", "reason", "write_table"]

OUT_OF_MEMORY = "out of memory"
_GIB = 2**30
_DPI = 130


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial of a tuning, which has ended."""

    name: str
    global_batch: int
    predicted_step_seconds: float
    predicted_peak_bytes: int
    """The peak of the fullest rank, as in `measured_peak_bytes`."""
    measured_step_seconds: float | None = None
    """None if the trial has not trained to its end."""
    measured_peak_bytes: int | None = None
    failure: str = ""
    """Why the trial has not trained to its end: `out of memory`, or the message of a rank."""

    @property
    def events_per_second(self) -> float | None:
        """The measured rate of the whole job; None if the trial has not trained to its end."""
        return None if self.measured_step_seconds is None else self.global_batch / self.measured_step_seconds


def fastest(results: Sequence[TrialResult]) -> TrialResult | None:
    """The trial that has trained the most events per second; None if none has trained to its end."""
    done = [trial for trial in results if trial.events_per_second is not None]
    return max(done, key=lambda trial: trial.events_per_second or 0.0, default=None)


def reason(winner: TrialResult, results: Sequence[TrialResult]) -> str:
    """A sentence that says why `winner` is the trial to take."""
    assert winner.events_per_second is not None and winner.measured_peak_bytes is not None
    rate = (
        f"{winner.name} trains {winner.events_per_second:.3g} events/s with "
        f"{winner.measured_peak_bytes / _GIB:.2f} GiB per rank, "
    )
    second = fastest([trial for trial in results if trial.name != winner.name])
    if second is None or second.events_per_second is None:
        others = "the only trial" if len(results) == 1 else f"the only one of {len(results)} trials"
        return f"{rate}{others} that ran to its end."
    ahead = winner.events_per_second / second.events_per_second - 1
    if ahead < 0.005:
        return f"{rate}as fast as the next one, {second.name}, to within half a percent."
    return f"{rate}{ahead:.0%} more than the next one, {second.name}."


def print_results(console: Console, results: Sequence[TrialResult]) -> None:
    """Print the table, with the fastest trial first and the failures last."""
    best = fastest(results)
    table = Table(title="predicted / measured", title_justify="left", title_style="bold")
    table.add_column("trial", overflow="fold")
    for heading in ("step, s", "peak per rank, GiB", "events/s"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for trial in _sorted(results):
        rate = "-" if trial.events_per_second is None else f"{trial.events_per_second:.3g}"
        table.add_row(
            trial.name,
            _pair(trial.predicted_step_seconds, trial.measured_step_seconds, 1.0),
            _pair(trial.predicted_peak_bytes, trial.measured_peak_bytes, _GIB),
            rate,
            "fastest" if trial is best else trial.failure,
        )
    console.print(table)


def _pair(predicted: float, measured: float | None, unit: float) -> str:
    return f"{predicted / unit:.2f} / {'-' if measured is None else f'{measured / unit:.2f}'}"


def _sorted(results: Sequence[TrialResult]) -> list[TrialResult]:
    return sorted(results, key=lambda trial: -(trial.events_per_second or 0.0))


def write_table(path: Path, results: Sequence[TrialResult]) -> None:
    """Write the table as CSV, in seconds and bytes; what was not measured is empty."""
    names = [
        *("name", "global_batch", "predicted_step_seconds", "measured_step_seconds"),
        *("predicted_peak_bytes", "measured_peak_bytes", "events_per_second", "failure"),
    ]
    write_csv(path, names, ([getattr(trial, name) for name in names] for trial in _sorted(results)))


def draw_results(path: Path, title: str, results: Sequence[TrialResult]) -> None:
    """Draw a PNG of two panels, seconds per step and GiB per rank, with two bars per trial; a failure says why."""
    # imported here, because it takes half a second, for which no other command should wait
    from matplotlib.figure import Figure

    rows = list(reversed(_sorted(results)))  # the first at the top
    # a Figure without pyplot needs no global state and no display server
    figure = Figure(figsize=(12, 1.6 + 0.5 * len(rows)), dpi=_DPI, layout="constrained")
    seconds, memory = figure.subplots(1, 2, sharey=True)
    _draw_panel(seconds, rows, [(trial.predicted_step_seconds, trial.measured_step_seconds) for trial in rows])
    _draw_panel(
        memory,
        rows,
        [
            (
                trial.predicted_peak_bytes / _GIB,
                None if trial.measured_peak_bytes is None else trial.measured_peak_bytes / _GIB,
            )
            for trial in rows
        ],
    )
    seconds.set_xlabel("seconds per step")
    memory.set_xlabel("peak of the fullest rank, GiB")
    seconds.set_yticks(range(len(rows)), [trial.name for trial in rows], fontsize=8)
    figure.legend(*seconds.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=12)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _draw_panel(panel: Any, rows: Sequence[TrialResult], pairs: Sequence[tuple[float, float | None]]) -> None:
    places = range(len(rows))
    panel.barh([at + 0.2 for at in places], [pair[0] for pair in pairs], 0.38, color="#9ecae1", label="predicted")
    measured = [pair[1] or 0.0 for pair in pairs]
    panel.barh([at - 0.2 for at in places], measured, 0.38, color="#08519c", label="measured")
    for at, trial in enumerate(rows):
        if trial.measured_step_seconds is None:
            words = OUT_OF_MEMORY if trial.failure.startswith(OUT_OF_MEMORY) else "failed"
            panel.text(0, at - 0.2, f" {words}", color="#cb181d", fontsize=8, va="center")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", alpha=0.3)
