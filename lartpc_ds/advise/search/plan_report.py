"""A plan is shown as tables or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lartpc_ds.advise.search.reasons import levers_of, reason
from lartpc_ds.advise.search.search import HEADROOM, Plan, Row
from lartpc_ds.advise.search.sizes import gib
from lartpc_ds.config.ds_config import precision
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, LitEvents, Problem

__all__ = ["print_report", "tree_of"]

_ROWS = 12
_MEMORY = ("weights", "gradients", "optimizer", "activations", "halos", "workspace")
_TIME = ("compute", "halo", "reduction", "bubble", "delay")


def tree_of(plan: Plan, hardware: Hardware, problem: Problem, devices: int) -> dict[str, Any]:
    """Everything that was found, as plain data for programs."""
    rows = [_tree(row) for row in plan.rows]
    return {
        "devices": devices,
        "memory_bytes": plan.memory_bytes,
        "usable_bytes": plan.limit_bytes,
        "hardware": hardware.name,
        "lit_events": None if problem.lit is None else _tree_of_events(problem.lit),
        "recommended": None if plan.recommended is None else _tree(plan.recommended),
        "candidates": rows,
        "reason": reason(plan),
        "refused": plan.refused,
    }


def _tree_of_events(lit: LitEvents) -> dict[str, Any]:
    median, brightest = lit.shares
    return {"origin": lit.origin, "patch": lit.plan.cut.patch, "median_share": median, "brightest_share": brightest}


def _tree(row: Row) -> dict[str, Any]:
    cost = row.cost
    return {
        **row.candidate.as_dict(),
        "peak_bytes": cost.memory.total,
        "memory_parts": asdict(cost.memory),
        "step_seconds": cost.time.total,
        "brightest_step_seconds": cost.brightest_seconds,
        "time_parts": asdict(cost.time),
        "events_per_second": cost.events_per_second,
        "global_batch": cost.global_batch,
        "fits": row.fits,
        "pareto": row.pareto,
        "exact": row.exact,
    }


def print_report(
    console: Console, plan: Plan, hardware: Hardware, problem: Problem, devices: int, *, assumed: bool
) -> None:
    """Print two tables (what to choose, and what it is made of), the recommendation, and what was not offered."""
    channels, height, width = problem.image
    config = problem.config
    name = config.model.target or config.model.name
    _say(
        console,
        f"{name} on {channels} x {height} x {width}, {precision(problem.ds)}, {devices} device(s) of "
        f"{gib(plan.memory_bytes)} GiB ({gib(plan.limit_bytes)} may be used: {HEADROOM:.0%} stays free), "
        f"{hardware.name}{' (assumed; say --hardware)' if assumed else ''}",
    )
    shown = _shown(plan)
    _print_table(console, _choices(plan, shown))
    _print_table(console, _parts(shown))
    _say(console, "> recommended   * Pareto front: none is as fast and much smaller")
    console.print()
    _say(console, reason(plan))
    if problem.lit is not None:
        _say(console, _about(problem.lit))
    for told in plan.refused:
        _say(console, f"- {told}")


def _about(lit: LitEvents) -> str:
    median, brightest = (f"{100 * share:.3g} %" for share in lit.shares)
    height, width = lit.plan.cut.patch
    return (
        f"Lit steps are traced on the median and on the brightest of {lit.origin}, which light {median} and "
        f"{brightest} of the image's patches of {height} x {width} pixels. Time and events/s are those of the median "
        "event, the memory is that of the brightest. Ranks wait for the one with the brightest events, and the time in "
        "which a processor finds the patches is not counted."
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _shown(plan: Plan) -> list[Row]:
    """The rows that were traced: recommended, the front, the best of the rest; guesses would look too good."""
    traced = [row for row in plan.rows if row.exact and (row.fits or plan.recommended is None)]
    first = [row for row in traced if row is plan.recommended or row.pareto]
    rest = [row for row in traced if row not in first]
    chosen = [*first, *rest][:_ROWS]
    return [row for row in traced if row in chosen]


def _choices(plan: Plan, rows: Sequence[Row]) -> Table:
    spread = any(row.cost.brightest_seconds is not None for row in rows)
    more = ["s on the brightest"] if spread else []
    steps = "s a step", *more, "events/s", "global batch"
    table = _table("", "", "layout", "batch", "ZeRO", "levers", "GiB a rank", *steps)
    for number, row in enumerate(rows, start=1):
        candidate, cost = row.candidate, row.cost
        mark = ">" if row is plan.recommended else "*" if row.pareto else ""
        table.add_row(
            str(number),
            mark,
            str(candidate.layout),
            f"{candidate.batch} x {candidate.accumulate}",
            f"{candidate.zero}{' offload' if candidate.offload else ''}",
            _levers(candidate),
            gib(cost.memory.total),
            _three(cost.time.total),
            *([_three(cost.brightest_seconds or cost.time.total)] if spread else []),
            _three(cost.events_per_second),
            str(cost.global_batch),
        )
    return table


def _levers(candidate: Candidate) -> str:
    words = [levers_of(candidate) or "-"]
    words += [f"gather {candidate.gather_at}"] if candidate.gather_at != "auto" else []
    return ", ".join([*words, *([] if candidate.overlap else ["no overlap"])])


def _parts(rows: Sequence[Row]) -> Table:
    table = _table("", *(f"{name}\nGiB" for name in _MEMORY), *(f"{name}\ns" for name in _TIME))
    for number, row in enumerate(rows, start=1):
        memory = [gib(getattr(row.cost.memory, name)) for name in _MEMORY]
        time = [_three(getattr(row.cost.time, name)) for name in _TIME]
        table.add_row(str(number), *memory, *time)
    return table


def _three(number: float) -> str:
    """Write a number with three digits; below a tenth of a millisecond it is 0."""
    return f"{number:.0f}" if number >= 100 else "0" if number < 1e-4 else f"{number:.3g}"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        words = name in ("", "layout", "levers", "ZeRO")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    return table


def _print_table(console: Console, table: Table) -> None:
    """Print a table at its own width: a terminal that is too narrow shall wrap lines, not drop figures."""
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    wide = Console(file=console.file, width=max(console.width, needed), force_terminal=console.is_terminal)
    wide.print(table)
    wide.print()
