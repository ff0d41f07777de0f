"""A scaling study as one picture per network: events/s, efficiency, memory, the phases of a step, and stragglers.

Colours are those of Okabe and Ito, which people who see few colours can tell apart; every line has a marker and a dash
pattern of its own as well, for a print in grey.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lartpc_ds.report.scaling import PHASES, Mode, Row, Scaling

__all__ = ["draw_rows"]

_DPI = 130
_GIB = 2**30
_MIB = 2**20
_STYLES: dict[tuple[Mode, Scaling], tuple[str, str, str, Any]] = {
    ("data", "weak"): ("data: weak (events per rank fixed)", "#0072B2", "o", "-"),
    ("data", "strong"): ("data: strong (global batch fixed)", "#D55E00", "s", "-."),
    ("tiles", "strong"): ("tiles of one event: strong (global batch fixed)", "#009E73", "^", ":"),
    ("pipe", "strong"): ("pipeline stages: strong (global batch fixed)", "#CC79A7", "D", (0, (6, 1, 1, 1, 1, 1))),
}
_PHASE_STYLES = {
    "read": ("reading", "#E69F00"),
    "forward": ("forward", "#56B4E9"),
    "backward": ("backward", "#0072B2"),
    "update": ("optimizer", "#009E73"),
    "reduce": ("gradient reduction", "#D55E00"),
    "halo": ("halo wait", "#CC79A7"),
    "stage": ("stage wait", "#F0E442"),
    "other": ("other", "#999999"),
}
Series = list[tuple[tuple[Mode, Scaling], list[Row]]]


def draw_rows(path: Path, title: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Draw a PNG of five panels; `rows` are those of one network, of which those that have not trained are left out."""
    # imported here, because it takes half a second, for which no other command should wait
    from matplotlib.figure import Figure

    series = _series(rows)
    # a Figure without pyplot needs no global state and no display server
    figure = Figure(figsize=(14, 9), dpi=_DPI, layout="constrained")
    panels = figure.subplot_mosaic([["rate", "efficiency", "memory"], ["phases", "phases", "straggler"]])
    _draw_rates(panels["rate"], series)
    _draw_lines(panels["efficiency"], series, lambda row: 100 * row.figures["efficiency"])
    panels["efficiency"].axhline(100, color="0.4", linestyle="--", linewidth=1)
    panels["efficiency"].set_ylim(bottom=0)
    panels["efficiency"].set(title="efficiency", ylabel="events/s relative to ideal, %")
    largest = max(row.figures["peak_bytes"] for _, line in series for row in line)
    unit, name = (_GIB, "GiB") if largest >= _GIB else (_MIB, "MiB")
    _draw_lines(panels["memory"], series, lambda row: row.figures["peak_bytes"] / unit)
    panels["memory"].set_ylim(bottom=0)
    panels["memory"].set(title="memory", ylabel=f"peak of the fullest rank, {name}")
    _draw_phases(panels["phases"], series)
    _draw_lines(panels["straggler"], series, lambda row: row.figures["straggler_factor"])
    panels["straggler"].set_ylim(0.98, max(1.1, panels["straggler"].get_ylim()[1]))
    panels["straggler"].set(title="straggler factor", ylabel="work of the slowest rank / mean of the ranks")
    handles, labels = panels["rate"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    repeats = max(row.repeats for _, line in series for row in line)
    told = [f"median of {repeats} repeat(s); bars: smallest to largest repeat", *notes]
    figure.suptitle(f"{title}\n", fontsize=14)
    figure.text(0.5, 0.955, "; ".join(told), ha="center", fontsize=9, color="0.3")
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _series(rows: Sequence[Row]) -> Series:
    """The lines of the picture, smallest size first."""
    found: Series = []
    for kind in _STYLES:
        if line := [row for row in rows if (row.point.mode, row.point.scaling) == kind and row.figures]:
            found.append((kind, sorted(line, key=lambda row: row.point.ranks)))
    return found


def _draw_rates(panel: Any, series: Series) -> None:
    for number, (_, line) in enumerate(series):
        first = line[0]
        ideal = [first.figures["events_per_second"] * row.point.ranks / first.point.ranks for row in line]
        label = "ideal: proportional to ranks" if number == 0 else None
        panel.plot([row.point.ranks for row in line], ideal, color="0.4", linestyle="--", linewidth=1, label=label)
    _draw_lines(panel, series, lambda row: row.figures["events_per_second"])
    for kind, line in series:
        rates = [row.figures["events_per_second"] for row in line]
        lowest = [row.point.global_batch / row.figures["step_seconds_high"] for row in line]
        highest = [row.point.global_batch / row.figures["step_seconds_low"] for row in line]
        ranges = [
            [rate - low for rate, low in zip(rates, lowest, strict=True)],
            [high - rate for rate, high in zip(rates, highest, strict=True)],
        ]
        ranks = [row.point.ranks for row in line]
        panel.errorbar(ranks, rates, ranges, fmt="none", ecolor=_STYLES[kind][1], capsize=4)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter("{x:.3g}")
    panel.set(title="rate", ylabel="events/s")


def _draw_lines(panel: Any, series: Series, value: Callable[[Row], float]) -> None:
    for kind, line in series:
        label, colour, marker, dashes = _STYLES[kind]
        ranks = [row.point.ranks for row in line]
        values = [value(row) for row in line]
        panel.plot(
            ranks,
            values,
            color=colour,
            marker=marker,
            linestyle=dashes,
            label=label,
            markerfacecolor="none",
            markersize=8,
            markeredgewidth=1.6,
        )
    sizes = sorted({row.point.ranks for _, line in series for row in line})
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_xlabel("ranks")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3)


def _draw_phases(panel: Any, series: Series) -> None:
    """Bars of the shares of a step, one per size, in a group per series."""
    places: list[float] = []
    rows: list[Row] = []
    start = 0.0
    for (mode, scaling), line in series:
        places += [start + number for number in range(len(line))]
        rows += line
        panel.text(start + (len(line) - 1) / 2, 102, f"{mode}, {scaling}", ha="center", fontsize=10)
        start += len(line) + 0.7
    below = [0.0] * len(rows)
    totals = [sum(row.figures[f"{phase}_seconds"] for phase in PHASES) for row in rows]
    for phase in PHASES:
        label, colour = _PHASE_STYLES[phase]
        shares = [100 * row.figures[f"{phase}_seconds"] / total for row, total in zip(rows, totals, strict=True)]
        panel.bar(places, shares, 0.8, below, color=colour, label=label, edgecolor="white", linewidth=0.5)
        below = [low + share for low, share in zip(below, shares, strict=True)]
    panel.set_xticks(places, [str(row.point.ranks) for row in rows])
    panel.set_ylim(0, 108)
    panel.set_yticks(range(0, 101, 20))
    panel.set(title="where the time of a step goes, mean of the ranks", xlabel="ranks", ylabel="share of a step, %")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
