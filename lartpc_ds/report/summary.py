"""The short table at the end of a run, made from the run folder alone, so that `report` can print it at any time.

A report must not refuse: it is what somebody looks at when something has gone wrong. So it takes the parts of the
folder that are whole, and says in a sentence what it leaves out. Where there is no record to compare with, as in
folders of earlier versions, configurations are left out like damaged ones.
"""

import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.integrity import Damage
from lartpc_ds.layout import Layout
from lartpc_ds.training.metrics import Evaluation

__all__ = ["print_evaluation", "print_summary", "summarise"]

_GIB = 2**30
_WARM_UP_STEPS = 2  # first allocations and lazy set-up; the field leaves them out of throughput figures
_NUMBERS = ("events", "step_seconds", "peak_bytes")


def summarise(folder: RunFolder) -> tuple[dict[str, str], list[str]]:
    """The rows of the table for one run, and a sentence for each part of its folder that is left out.

    Raises:
        UserError: it is not a run folder.
    """
    folder.require()
    left_out: list[str] = []
    config, job = _configurations(folder, left_out)
    steps, evaluations = _metrics(folder, left_out)
    asked = job["max_steps"] if job else "?"
    rows = {
        "trained": _trained(config, job) if config and job else "?",
        "layout": str(Layout(**job["layout"])) if job else "?",
        "steps": f"{steps[-1]['step'] if steps else 0} of {asked}"
        + (f", {steps[-1]['events']} events" if steps else "")
        + _skipped(steps)
        + ("" if folder.done_file.exists() else " (not finished)"),
        "balanced accuracy": evaluations[-1].balanced_text(f"{evaluations[-1].events} held-out events")
        if evaluations
        else "not evaluated (no held-out events)",
        "seconds per event": _seconds_per_event(steps),
        "peak memory per rank": f"{max(line['peak_bytes'] for line in steps) / _GIB:.2f} GiB" if steps else "-",
        "run folder": str(folder.path),
    }
    return rows, left_out


def _configurations(folder: RunFolder, left_out: list[str]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The content of `config.toml` and of `job.json`, or None for one that is not whole."""
    try:
        record = folder.record()
    except Damage as damage:
        left_out.append(f"{damage}, so config.toml and job.json cannot be compared with what was written")
        return None, None
    faults = {path: record.faults(folder.path, path.name) for path in (folder.config_file, folder.job_file)}
    left_out += [fault for of_file in faults.values() for fault in of_file]
    config = None if faults[folder.config_file] else tomllib.loads(folder.config_file.read_text())
    return config, None if faults[folder.job_file] else json.loads(folder.job_file.read_text())


def _metrics(folder: RunFolder, left_out: list[str]) -> tuple[list[dict[str, Any]], list[Evaluation]]:
    """The lines of steps and the evaluations that are whole."""
    steps, evaluations, garbled = [], [], []
    for number, line in folder.numbered_metrics():
        if line is not None and "loss" in line and all(isinstance(line.get(name), int | float) for name in _NUMBERS):
            steps.append(line)
            continue
        try:
            evaluations.append(Evaluation.from_dict((line or {}).get("evaluation")))
        except ValueError:
            garbled.append(str(number))
    if garbled:
        left_out.append(f"metrics.jsonl: line {', '.join(garbled)} is garbled")
    return steps, evaluations


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
    """What float16 has cost: the number of steps whose gradients overflowed, so that no weight changed."""
    skipped = steps[-1].get("skipped_steps", 0) if steps else 0
    return f", {skipped} of them skipped (float16 overflow)" if skipped else ""


def _seconds_per_event(steps: Sequence[dict[str, Any]]) -> str:
    if not steps:
        return "-"
    counted = steps[_WARM_UP_STEPS:] or steps[-1:]
    batch = steps[-1]["events"] / steps[-1]["step"]
    return f"{statistics.median(line['step_seconds'] for line in counted) / batch:.3g} (all ranks together)"


def print_summary(console: Console, folders: Sequence[RunFolder]) -> None:
    """Print the table, with a column per run, and the next command to try."""
    table = Table(title="runs" if len(folders) > 1 else "result", title_justify="left", title_style="bold")
    columns, left_out = zip(*map(summarise, folders), strict=True)
    table.add_column("")
    for folder in folders:
        table.add_column(folder.path.name, overflow="fold")
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    for folder, sentences in zip(folders, left_out, strict=True):
        for sentence in sentences:
            console.print(f"left out of {folder.path.name}: {sentence}", soft_wrap=True, highlight=False, markup=False)
    console.print("next:", f"lartpc-ds evaluate {folders[0].path}", soft_wrap=True, highlight=False)


def print_evaluation(console: Console, figures: Evaluation) -> None:
    """Print the confusion matrix (shares of each true class), and efficiency and purity of each class."""
    shares = _table("truth (rows) and prediction (columns)", ["", *figures.classes])
    quality = _table("each class, 95 % intervals", ["", figures.counted, "efficiency", "purity"])
    rows = zip(figures.classes, figures.confusion, figures.efficiency, figures.purity, strict=True)
    for name, counts, efficiency, purity in rows:
        shares.add_row(name, *(f"{count / sum(counts):.3f}" if sum(counts) else "-" for count in counts))
        quality.add_row(name, str(sum(counts)), str(efficiency), str(purity))
    console.print(shares)
    console.print(quality)
    basis = f"{figures.events} events"
    if figures.counted == "pixels":
        basis = f"{sum(map(sum, figures.confusion))} pixels of {basis}"
    console.print(f"accuracy: {figures.accuracy} on {basis}", highlight=False)
    console.print(f"balanced accuracy: {figures.balanced_text(basis)}", highlight=False, soft_wrap=True)
    console.print(f"loss: {figures.loss:.4f}", highlight=False)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    return table
