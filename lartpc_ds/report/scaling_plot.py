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
    ("data", "weak"): ("data, weak (events per rank fixed)", "#0072B2", "o", "-"),
    ("data", "strong"): ("data, strong (global batch fixed)", "#D55E00", "s", "-."),
    ("tiles", "strong"): ("tiles of one event, strong (global batch fixed)", "#009E73", "^", ":"),
    ("pipe", "strong"): ("pipeline stages, strong (global batch fixed)", "#CC79A7", "D", (0, (6, 1, 1, 1, 1, 1))),
}
_PHASE_STYLES = {
    "read": ("reading", "#E69F00"),
    "forward": ("forward", "#56B4E9"),
    "backward": ("backward", "#0072B2"),
    "update": ("optimizer", "#009E73"),
    "reduce": ("gradient reduction and waiting", "#D55E00"),
    "halo": ("halo messages and waiting", "#CC79A7"),
    "stage": ("stage messages and waiting", "#F0E442"),
    "other": ("other", "#999999"),
}
Series = list[tuple[tuple[Mode, Scaling], list[Row]]]


def draw_rows(path: Path, title: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Draw a PNG of five panels; `rows` are those of one network, and below the title is what a reader must know."""
    # imported here, because it takes half a second, for which no other command should wait
    from matplotlib.figure import Figure

    series = _series(rows)
    # a Figure without pyplot needs no global state and no display server
    figure: Any = Figure(figsize=(15, 9.4), dpi=_DPI, layout="constrained")
    head, top, bottom = figure.subfigures(3, 1, height_ratios=[0.09, 0.46, 0.45])
    head.text(0.5, 0.62, title, ha="center", va="center", fontsize=15)
    head.text(0.5, 0.12, "; ".join(_told(rows, notes)), ha="center", va="center", fontsize=10, color="0.3")
    rate, efficiency, memory, straggler = top.subplots(1, 4)
    _draw_rates(rate, series)
    _draw_efficiency(efficiency, series)
    _draw_memory(memory, series)
    _draw_lines(straggler, series, lambda row: row.figures["straggler_factor"])
    straggler.set_ylim(0.98, max(1.1, straggler.get_ylim()[1]))
    straggler.set(title="straggler factor", ylabel="work of slowest rank / mean of ranks")
    top.legend(*rate.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _draw_phases(bottom.subplots(), series)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def _told(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    lost = [f"{row.point.mode}, {row.point.scaling}, {row.point.ranks} rank(s)" for row in rows if not row.figures]
    repeats = max(row.repeats for row in rows)
    told = [f"median of {repeats} repeat(s)", "vertical bars from the smallest to the largest", *notes]
    return [*told, f"did not run: {' and '.join(lost)}"] if lost else told


def _series(rows: Sequence[Row]) -> Series:
    """The lines of the picture, smallest size first."""
    found: Series = []
    for kind in _STYLES:
        if line := [row for row in rows if (row.point.mode, row.point.scaling) == kind and row.figures]:
            found.append((kind, sorted(line, key=lambda row: row.point.ranks)))
    return found


def _draw_rates(panel: Any, series: Series) -> None:
    panel.plot([], [], color="0.4", linestyle="--", linewidth=1, label="ideal (proportional to ranks)")
    for kind, line in series:
        ranks = [row.point.ranks for row in line]
        rates = [row.figures["events_per_second"] for row in line]
        ideal = [rates[0] * size / ranks[0] for size in ranks]
        panel.plot(ranks, ideal, color=_STYLES[kind][1], linestyle="--", linewidth=1)
        lowest = [row.point.global_batch / row.figures["step_seconds_high"] for row in line]
        highest = [row.point.global_batch / row.figures["step_seconds_low"] for row in line]
        panel.vlines(ranks, lowest, highest, color=_STYLES[kind][1])
        panel.plot(2 * ranks, lowest + highest, "_", color=_STYLES[kind][1], markersize=8)
    _draw_lines(panel, series, lambda row: row.figures["events_per_second"])
    from matplotlib import ticker

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter("{x:.3g}")
    panel.minorticks_off()
    panel.set(title="rate", ylabel="events/s")


def _draw_efficiency(panel: Any, series: Series) -> None:
    panel.axhline(100, color="0.4", linestyle="--", linewidth=1)
    _draw_lines(panel, series, lambda row: 100 * row.figures["efficiency"])
    panel.set_ylim(0, max(112, panel.get_ylim()[1]))
    panel.set(title="efficiency", ylabel="events/s relative to ideal, %")


def _draw_memory(panel: Any, series: Series) -> None:
    largest = max(row.figures["peak_bytes"] for _, line in series for row in line)
    unit, name = (_GIB, "GiB") if largest >= _GIB else (_MIB, "MiB")
    _draw_lines(panel, series, lambda row: row.figures["peak_bytes"] / unit)
    panel.set_ylim(0, 1.1 * largest / unit)
    panel.set(title="memory per rank", ylabel=f"peak of the fullest rank, {name}")


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
    """Bars of the shares of a step, one per size, in a group per series; above each is the time of the step."""
    places: list[float] = []
    rows: list[Row] = []
    start = 0.0
    for (mode, scaling), line in series:
        places += [start + number for number in range(len(line))]
        rows += line
        panel.text(start + (len(line) - 1) / 2, 110, f"{mode}, {scaling}", ha="center", fontsize=11)
        start += len(line) + 0.7
    below = [0.0] * len(rows)
    totals = [sum(row.figures[f"{phase}_seconds"] for phase in PHASES) for row in rows]
    for phase in PHASES:
        label, colour = _PHASE_STYLES[phase]
        shares = [100 * row.figures[f"{phase}_seconds"] / total for row, total in zip(rows, totals, strict=True)]
        panel.bar(places, shares, 0.8, below, color=colour, label=label, edgecolor="white", linewidth=0.5)
        below = [low + share for low, share in zip(below, shares, strict=True)]
    for place, row in zip(places, rows, strict=True):
        panel.text(place, 102, f"{row.figures['step_seconds']:.3g} s", ha="center", fontsize=9, color="0.3")
    panel.set_xticks(places, [str(row.point.ranks) for row in rows])
    panel.set_ylim(0, 119)
    panel.set_yticks(range(0, 101, 20))
    panel.set(title="where the time of a step goes (mean of the ranks; above each bar: a step in seconds)")
    panel.set(xlabel="ranks", ylabel="share of a step, %")
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
