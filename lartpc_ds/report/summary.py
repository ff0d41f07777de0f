"""The short table at the end of a run, made from the run folder alone, so that `report` can print it at any time."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.layout import Layout
from lartpc_ds.report.whole import WholeParts, whole_parts
from lartpc_ds.training.metrics import Interval, balanced_text

__all__ = ["print_evaluation", "print_summary", "summarise"]

_GIB = 2**30
_WARM_UP_STEPS = 2  # first allocations and lazy set-up; the field leaves them out of throughput figures


def summarise(folder: RunFolder) -> dict[str, str]:
    """Rows of the table for one run; UserError if it is not a run folder."""
    return _rows(folder, whole_parts(folder))


def _rows(folder: RunFolder, parts: WholeParts) -> dict[str, str]:
    steps, figures = parts.steps, parts.evaluations[-1:]
    asked = parts.job["max_steps"] if parts.job else "?"
    return {
        "trained": _trained(parts.config, parts.job) if parts.config and parts.job else "?",
        "layout": str(Layout(**parts.job["layout"])) if parts.job else "?",
        "steps": f"{steps[-1]['step'] if steps else 0} of {asked}"
        + (f", {steps[-1]['events']} events" if steps else "")
        + _skipped(steps)
        + ("" if folder.done_file.exists() else " (not finished)"),
        "balanced accuracy": balanced_text(figures[0], f"{figures[0]['events']} held-out events")
        if figures
        else "not evaluated (no held-out events)",
        "seconds an event": _seconds_an_event(steps),
        "peak memory a rank": f"{max(line['peak_bytes'] for line in steps) / _GIB:.2f} GiB" if steps else "-",
        "run folder": str(folder.path),
    }


def _trained(config: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    factors = config["data"]["downsample"]
    wires, ticks = job["image_shape"]
    block = (factors, factors) if isinstance(factors, int) else tuple(factors)
    axes = "channels x rows x columns" if config["data"].get("target") else "planes x wires x ticks"
    return (
        f"{config['model'].get('target') or config['model']['name']} on {job['planes']} x "
        f"{-(-wires // block[0])} x {-(-ticks // block[1])} ({axes}), {config['train']['ds_config']}"
    )


def _skipped(steps: Sequence[dict[str, Any]]) -> str:
    """What float16 has cost: steps whose gradients overflowed changed no weight."""
    skipped = steps[-1].get("skipped_steps", 0) if steps else 0
    return f", {skipped} of them skipped (float16 overflow)" if skipped else ""


def _seconds_an_event(steps: Sequence[dict[str, Any]]) -> str:
    if not steps:
        return "-"
    counted = steps[_WARM_UP_STEPS:] or steps[-1:]
    batch = steps[-1]["events"] / steps[-1]["step"]
    return f"{statistics.median(line['step_seconds'] for line in counted) / batch:.3g} (all ranks together)"


def print_summary(console: Console, folders: Sequence[RunFolder]) -> None:
    """The table, a column a run, and the next command to try."""
    table = Table(title="runs" if len(folders) > 1 else "result", title_justify="left", title_style="bold")
    found = [whole_parts(folder) for folder in folders]
    columns = [_rows(folder, parts) for folder, parts in zip(folders, found, strict=True)]
    table.add_column("")
    for folder in folders:
        table.add_column(folder.path.name, overflow="fold")
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    for folder, parts in zip(folders, found, strict=True):
        for told in parts.left_out:
            console.print(f"left out of {folder.path.name}: {told}", soft_wrap=True, highlight=False, markup=False)
    console.print("next:", f"lartpc-ds evaluate {folders[0].path}", soft_wrap=True, highlight=False)


def print_evaluation(console: Console, figures: dict[str, Any]) -> None:
    """Confusion matrix (shares of each true class), then efficiency and purity of each class with 95 % intervals."""
    classes = figures["classes"]
    shares = _table("truth (rows) and prediction (columns)", ["", *classes])
    counted = figures["counted"]
    quality = _table("each class, 95 % intervals", ["", counted, "efficiency", "purity"])
    for row, name in enumerate(classes):
        counts = figures["confusion"][row]
        shares.add_row(name, *(f"{count / sum(counts):.3f}" if sum(counts) else "-" for count in counts))
        intervals = [str(Interval.from_dict(figures[key][row])) for key in ("efficiency", "purity")]
        quality.add_row(name, str(sum(counts)), *intervals)
    console.print(shares)
    console.print(quality)
    number = sum(map(sum, figures["confusion"]))
    basis = f"{figures['events']} events" if counted == "events" else f"{number} pixels of {figures['events']} events"
    console.print(f"accuracy: {Interval.from_dict(figures['accuracy'])} on {basis}", highlight=False)
    console.print(f"balanced accuracy: {balanced_text(figures, basis)}", highlight=False, soft_wrap=True)
    console.print(f"loss: {figures['loss']:.4f}", highlight=False)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    return table
