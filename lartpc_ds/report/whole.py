"""What of a run's folder can be believed: the parts that a report is made of, and a sentence for each that is left out.

A report must not refuse: it is what somebody looks at when something has gone wrong. So it takes what is whole. Where
there is no record to compare with, as in folders of earlier versions, configurations are left out like damaged ones.
"""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.config.run_record import RunRecord
from lartpc_ds.data.integrity import Damage

__all__ = ["WholeParts", "whole_parts"]

_NUMBERS = ("events", "step_seconds", "peak_bytes")
_FIGURES = {"balanced_accuracy", "classes", "confusion", "counted", "events"}
_INTERVAL = {"value", "low", "high"}


@dataclass(frozen=True, slots=True)
class WholeParts:
    """Of one run; a configuration is None where it was left out."""

    config: Mapping[str, Any] | None
    job: Mapping[str, Any] | None
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    left_out: list[str]


def whole_parts(folder: RunFolder) -> WholeParts:
    """Read them; UserError if it is not a run folder."""
    folder.require()
    left_out: list[str] = []
    record = None
    try:
        record = folder.record()
    except Damage as damage:
        left_out.append(f"{damage}, so config.toml and job.json cannot be compared with what was written")
    config = _tree(folder.config_file, tomllib.loads, record, left_out)
    job = _tree(folder.job_file, json.loads, record, left_out)
    steps, evaluations, garbled = [], [], []
    for number, line in folder.numbered_metrics():
        if line is not None and _is_step(line):
            steps.append(line)
        elif line is not None and _is_evaluation(line):
            evaluations.append(line["evaluation"])
        else:
            garbled.append(str(number))
    if garbled:
        left_out.append(f"metrics.jsonl: line {', '.join(garbled)} is garbled")
    return WholeParts(config, job, steps, evaluations, left_out)


def _tree(
    path: Path, parse: Callable[[str], dict[str, Any]], record: RunRecord | None, left_out: list[str]
) -> dict[str, Any] | None:
    if record is None:
        return None
    if faults := record.faults(path.parent, path.name):
        left_out.extend(faults)
        return None
    return parse(path.read_text())


def _is_step(line: Mapping[str, Any]) -> bool:
    return "loss" in line and all(isinstance(line.get(name), int | float) for name in _NUMBERS)


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    figures = line.get("evaluation")
    if not isinstance(figures, dict) or not figures.keys() >= _FIGURES:
        return False
    interval = figures["balanced_accuracy"]
    return isinstance(interval, dict) and interval.keys() == _INTERVAL
