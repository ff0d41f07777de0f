"""What is in these files, and what is wrong with them: the check to run before training.

Every event is read, because a damaged one is found in no cheaper way. A broken file or event is a line under "problems"
and the rest is still shown; the command then ends with exit code 2.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lartpc_ds.data.event import Event, Plane
from lartpc_ds.data.files import Reader, expand, make_reader
from lartpc_ds.data.labels import truth_names
from lartpc_ds.errors import UserError

__all__ = ["inspect_files", "print_inspection"]

Report = dict[str, Any]


def inspect_files(
    patterns: Sequence[str], product: str = "auto", truth: str = "auto", console: Console | None = None
) -> Report:
    """`{files, events, problems}`, fit for JSON; a progress bar on `console` if one is given.

    files: `[{file, format, events, planes, product, truth, problems}]`; events: `[{file, index, run, subrun, event,
    label, planes: [{plane, shape, nonzero, sum, max}]}]`, label None without truth; problems: sentences, all of them.
    """
    report: Report = {"files": [], "events": [], "problems": []}
    for path in _paths(patterns, report["problems"]):
        entry, events = _inspect_file(path, product, truth, console)
        report["files"].append(entry)
        report["events"].extend(events)
        report["problems"].extend(entry["problems"])
    planes = {entry["planes"]: entry["file"] for entry in report["files"] if entry["planes"]}
    if len(planes) > 1:
        found = ", ".join(f"{count} in {file}" for count, file in planes.items())
        report["problems"].append(f"files differ in their number of planes ({found}); they cannot be used together")
    return report


def _paths(patterns: Sequence[str], problems: list[str]) -> list[Path]:
    """Files of all patterns, each once; a sentence in `problems` for a pattern without files."""
    paths: dict[Path, Path] = {}
    for pattern in patterns:
        try:
            paths.update({path.resolve(): path for path in expand([pattern])})
        except UserError as error:
            problems.append(str(error))
    return sorted(paths.values())


def _inspect_file(path: Path, product: str, truth: str, console: Console | None) -> tuple[Report, list[Report]]:
    """The line of a file and those of its readable events; faults go into the line's "problems"."""
    problems: list[str] = []
    known: Report = {}
    events: list[Report] = []
    try:
        reader = make_reader(path, product=product, truth=truth)
        known = {key: getattr(reader, key) for key in ("format", "product", "truth")}
        known.update(events=reader.num_events, planes=reader.num_planes)
        events = _inspect_events(reader, problems, console)
        reader.close()
    except UserError as error:
        problems.append(str(error))
    line = {key: known.get(key) for key in ("format", "events", "planes", "product", "truth")}
    return {"file": str(path), **line, "problems": problems}, events


def _inspect_events(reader: Reader, problems: list[str], console: Console | None) -> list[Report]:
    """The readable events; a sentence in `problems` for each other one."""
    labels = truth_names(reader.primaries()) if reader.truth else [None] * reader.num_events
    indices = range(reader.num_events)
    progress = track(indices, reader.path.name, console=console, transient=True) if console else indices
    events = []
    for index in progress:
        try:
            event = reader.read(index)
        except UserError as error:
            problems.append(str(error))
            continue
        planes = [_inspect_plane(plane) for plane in event.planes]
        events.append({**_identity(event), "label": labels[index], "planes": planes})
    return events


def _identity(event: Event) -> Report:
    identity = event.id
    return {
        "file": identity.file,
        "index": identity.index,
        "run": identity.run,
        "subrun": identity.subrun,
        "event": identity.event,
    }


def _inspect_plane(plane: Plane) -> Report:
    return {
        "plane": plane.plane,
        "shape": list(plane.shape),
        "nonzero": int(np.count_nonzero(plane.values)),
        "sum": float(plane.values.sum(dtype=np.float64)),
        "max": float(plane.values.max(initial=0)),
    }


def print_inspection(console: Console, report: Report) -> None:
    """Tables of files, planes and labels, then the problems."""
    files = Table("file", "format", "events", "planes", "product", "truth", "problems", title="Files")
    for entry in report["files"]:
        cells = [entry[key] for key in ("file", "format", "events", "planes", "product", "truth")]
        count = len(entry["problems"])
        files.add_row(*("-" if cell is None else str(cell) for cell in cells), f"[red]{count}" if count else "none")
    console.print(files)
    if report["events"]:
        console.print(_plane_table(report["events"]))
        console.print(_label_table(report["events"]))
    for problem in report["problems"]:
        console.print("problem:", problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if not report["problems"]:
        console.print(f"no problems in {len(report['events'])} events", style="green")


def _plane_table(events: Sequence[Report]) -> Table:
    table = Table("plane", "wires x ticks", "occupancy", "pixels/event", "charge/event", "largest", title="Planes")
    groups: dict[tuple[int, int, int], list[Report]] = {}
    for event in events:
        for plane in event["planes"]:
            groups.setdefault((plane["plane"], *plane["shape"]), []).append(plane)
    for (number, wires, ticks), planes in sorted(groups.items()):
        nonzero = [plane["nonzero"] for plane in planes]
        occupancy = math.fsum(nonzero) / len(planes) / (wires * ticks)
        table.add_row(
            str(number),
            f"{wires} x {ticks}",
            f"{occupancy:.3%}",
            f"{min(nonzero)} to {max(nonzero)}",
            f"{math.fsum(plane['sum'] for plane in planes) / len(planes):.6g}",
            f"{max(plane['max'] for plane in planes):.6g}",
        )
    return table


def _label_table(events: Sequence[Report]) -> Table:
    table = Table("label", "events", "share", title="Truth")
    for label, count in Counter(event["label"] for event in events).most_common():
        table.add_row(label or "no truth in the file", str(count), f"{count / len(events):.1%}")
    return table
