"""What event files hold, and what is wrong with them: the check to run before training.

Every event is read, because there is no cheaper way to find a damaged one. A broken file or event becomes a line under
"problems" while everything else is still shown, and the command ends with exit code 2.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from lartpc_ds.config.recipes.overrides import parse, put
from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.duplicates import refuse_duplicates
from lartpc_ds.data.files import EventFiles, Reader, expand, make_reader, notes_of
from lartpc_ds.data.labels import truth_names
from lartpc_ds.data.lit_shares import AUTO_PIXELS, Cut, describe_shares
from lartpc_ds.data.survey import Survey, absurd_values, describe_isolated, survey
from lartpc_ds.errors import UserError
from lartpc_ds.training.sources import image_shape, preprocessing

__all__ = ["config_of_images", "inspect_files", "print_inspection"]

Report = dict[str, Any]

_IMAGE_KEYS = (
    *("data.isolated", "data.detector", "data.downsample", "data.threshold", "data.saturate"),
    "memory.lit_block",
)


def config_of_images(overrides: Sequence[str]) -> RunConfig | None:
    """A configuration with the keys of `--set` about how events become images; None if there is no `--set`.

    Raises:
        UserError: a value is wrong, a key is about something else, or `data.isolated` and `memory.lit_block` are off.
    """
    if not overrides:
        return None
    settings, problems = parse(overrides)
    for setting in settings:
        key = ".".join(["ds"] * setting.in_json + list(setting.path))
        if key not in _IMAGE_KEYS:
            problems.append(f"--set {key}: inspect takes {', '.join(_IMAGE_KEYS)} only; leave it out")
    tree: dict[str, Any] = {"train": {"max_steps": 1}}
    problems += put(tree, settings)
    if problems:
        raise UserError("\n".join(problems))
    config = RunConfig.parse(tree, "--set")
    if config.data.isolated == 0 and config.memory.lit_block == 0:
        raise UserError(
            "--set: data.isolated = 0 is off, and so is memory.lit_block, and inspect uses the other keys only to say "
            "what the one drops and what charge lights of the patches of the other; set data.isolated to 1 to 25 or "
            "memory.lit_block to a number of pixels, or leave --set out"
        )
    return config


def inspect_files(
    patterns: Sequence[str],
    product: str = "auto",
    truth: str = "auto",
    console: Console | None = None,
    images: RunConfig | None = None,
) -> Report:
    """Inspect files and return `{files, events, problems, notes}`, fit for JSON, with a progress bar on a `console`.

    files: `[{file, format, events, planes, product, truth, problems}]`; events: `[{file, index, run, subrun, event,
    label, planes: [{plane, shape, nonzero, sum, min, max}]}]`, where label is None without truth; problems: sentences
    about all files; notes: sentences that a user should know and that stop nothing. With a configuration of `images`
    (see `config_of_images`) notes say what `data.isolated` drops, and what charge lights of the patches of the image.
    """
    report: Report = {"files": [], "events": [], "problems": [], "notes": []}
    opened = [_open(path, product, truth) for path in _paths(patterns, report["problems"])]
    readers = [reader for _, reader in opened if reader is not None]
    looks = _looks(readers, console, images)
    for entry, reader in opened:
        if reader is not None:
            report["events"] += _inspect_events(reader, looks[reader.path], entry["problems"])
        report["files"].append(entry)
        report["problems"] += entry["problems"]
    planes = {entry["planes"]: entry["file"] for entry in report["files"] if entry["planes"]}
    if len(planes) > 1:
        counts = ", ".join(f"{count} in {file}" for count, file in planes.items())
        report["problems"].append(f"files differ in their number of planes ({counts}); they cannot be used together")
    if readers:
        report["notes"] = [*notes_of(readers), *_duplicates(readers, looks)]
        if images is not None:
            report["notes"] += _notes_of_images(readers, looks, images)
    return report


def _notes_of_images(readers: Sequence[Reader], looks: Mapping[Path, Survey], images: RunConfig) -> list[str]:
    notes = []
    if images.data.isolated:
        notes.append(describe_isolated(list(looks.values()), images.data.isolated))
    if cut := _cut(images, (0, 0)):
        seen = [(reader, index) for reader in readers for index in range(reader.num_events)]
        seen = [(reader, index) for reader, index in seen if index not in looks[reader.path].faults]
        shares = np.array([looks[reader.path].shares[index] for reader, index in seen])
        notes += describe_shares(shares, (), cut.patch, [reader.event_id(index) for reader, index in seen])
    return notes


def _cut(images: RunConfig, shape: tuple[int, int]) -> Cut | None:
    """How images of (rows, columns) are cut, if they are; only a network has maps in which charge reaches further."""
    side = images.memory.lit_block
    side = AUTO_PIXELS if side == "auto" else side
    return Cut(shape, (side, side)) if side else None


def _paths(patterns: Sequence[str], problems: list[str]) -> list[Path]:
    """The files of all patterns, each once; `problems` gets a sentence for a pattern without files."""
    paths: dict[Path, Path] = {}
    for pattern in patterns:
        try:
            paths.update({path.resolve(): path for path in expand([pattern])})
        except UserError as error:
            problems.append(str(error))
    return sorted(paths.values())


def _open(path: Path, product: str, truth: str) -> tuple[Report, Reader | None]:
    """The report of a file, and its reader unless the file is broken."""
    line: Report = {"file": str(path), **dict.fromkeys(("format", "events", "planes", "product", "truth"))}
    try:
        reader = make_reader(path, product=product, truth=truth)
    except UserError as error:
        return {**line, "problems": [str(error)]}, None
    known = {"format": reader.format, "events": reader.num_events, "planes": reader.num_planes}
    return {**line, **known, "product": reader.product, "truth": reader.truth, "problems": []}, reader


def _looks(readers: Sequence[Reader], console: Console | None, images: RunConfig | None) -> dict[Path, Survey]:
    """What a look at every event of each file has found; files with the same number of planes are read together."""
    looks: dict[Path, Survey] = {}
    with Progress(console=console, transient=True, disable=console is None) as bar:
        for planes in sorted({reader.num_planes for reader in readers}):
            alike = [reader for reader in readers if reader.num_planes == planes]
            total = sum(reader.num_events for reader in alike)
            task = bar.add_task(f"events of {planes} planes", total=total)
            everything, workers = np.ones(total, np.bool_), len(os.sched_getaffinity(0))
            pre = None if images is None else preprocessing(images, image_shape(images, EventFiles(alike)))
            cut = None if images is None or pre is None else _cut(images, pre.shape)
            look = survey(alike, everything, workers, partial(_show, bar, task), pre=pre, cut=cut)
            stop = 0
            for reader in alike:
                start, stop = stop, stop + reader.num_events
                looks[reader.path] = look.part(start, stop)
    return looks


def _show(bar: Progress, task: TaskID, count: int) -> None:
    bar.update(task, completed=count)


def _duplicates(readers: Sequence[Reader], looks: Mapping[Path, Survey]) -> list[str]:
    """A note about repeated events; they are no fault of a file, since data.duplicates decides about them."""
    ids = [reader.event_id(index) for reader in readers for index in range(reader.num_events)]
    try:
        refuse_duplicates(ids, np.concatenate([looks[reader.path].digests for reader in readers]))
    except UserError as error:
        return [str(error)]
    return []


def _inspect_events(reader: Reader, look: Survey, problems: list[str]) -> list[Report]:
    """The reports of the readable events; `problems` gets a sentence for each other event."""
    try:
        labels = truth_names(reader.primaries()) if reader.truth else [None] * reader.num_events
    except UserError as error:
        problems.append(str(error))
        return []
    problems += [look.faults[index] for index in sorted(look.faults)]
    problems += absurd_values(look, reader)
    return [
        _event(reader, look, index, labels[index]) for index in range(reader.num_events) if index not in look.faults
    ]


def _event(reader: Reader, look: Survey, index: int, label: str | None) -> Report:
    planes = [
        {
            "plane": plane,
            "shape": list(shape),
            "nonzero": int(extent["pixels"]),
            "sum": float(extent["charge"]),
            "min": float(extent["lowest"]),
            "max": float(extent["highest"]),
        }
        for plane, shape, extent in zip(reader.plane_numbers, reader.plane_shapes, look.extents[index], strict=True)
    ]
    return {**asdict(reader.event_id(index)), "label": label, "planes": planes}


def print_inspection(console: Console, report: Report) -> None:
    """Print tables of files, planes and labels, then the notes and the problems."""
    files = Table("file", "format", "events", "planes", "product", "truth", "problems", title="Files")
    for entry in report["files"]:
        cells = [entry[key] for key in ("file", "format", "events", "planes", "product", "truth")]
        count = len(entry["problems"])
        files.add_row(*("-" if cell is None else str(cell) for cell in cells), f"[red]{count}" if count else "none")
    console.print(files)
    if report["events"]:
        console.print(_plane_table(report["events"]))
        console.print(_label_table(report["events"]))
    for note in report["notes"]:
        console.print("note:", note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for problem in report["problems"]:
        console.print("problem:", problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if not report["problems"]:
        console.print(f"no problems in {len(report['events'])} events", style="green")


def _plane_table(events: Sequence[Report]) -> Table:
    columns = ("plane", "wires x ticks", "occupancy", "pixels/event", "charge/event", "values")
    table = Table(*columns, title="Planes")
    groups: dict[tuple[int, int, int], list[Report]] = {}
    for event in events:
        for plane in event["planes"]:
            groups.setdefault((plane["plane"], *plane["shape"]), []).append(plane)
    for (number, wires, ticks), planes in sorted(groups.items()):
        nonzero = [plane["nonzero"] for plane in planes]
        lowest, highest = ([plane[end] for plane in planes if plane["nonzero"]] for end in ("min", "max"))
        occupancy = math.fsum(nonzero) / len(planes) / (wires * ticks)
        table.add_row(
            str(number),
            f"{wires} x {ticks}",
            f"{occupancy:.3%}",
            f"{min(nonzero)} to {max(nonzero)}",
            f"{math.fsum(plane['sum'] for plane in planes) / len(planes):.6g}",
            f"{min(lowest):.4g} to {max(highest):.4g}" if highest else "-",
        )
    return table


def _label_table(events: Sequence[Report]) -> Table:
    table = Table("label", "events", "share", title="Truth")
    for label, count in Counter(event["label"] for event in events).most_common():
        table.add_row(label or "no truth in the file", str(count), f"{count / len(events):.1%}")
    return table
