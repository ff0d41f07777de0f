"""`lartpc-ds evaluate`: a checkpoint of a run on its held-out events, or on files of the user's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds import checkpoint
from lartpc_ds.config import RunConfig, SplitConfig
from lartpc_ds.data.event_index import EventIndex, write_index
from lartpc_ds.errors import UserError
from lartpc_ds.launch.command import check_devices, default_devices, local_command
from lartpc_ds.launch.job import run_job
from lartpc_ds.layout import Layout
from lartpc_ds.prepare import index_events, make_job, open_events
from lartpc_ds.report.summary import print_evaluation
from lartpc_ds.runlog import RunFolder, write_atomically
from lartpc_ds.session import open_run

__all__ = ["EvaluateRequest", "evaluate"]


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """The command line of `evaluate`."""

    run_dir: Path
    files: Sequence[str] = ()
    checkpoint: str = "last"
    devices: int | None = None
    verbose: bool = False


def evaluate(request: EvaluateRequest, console: Console) -> int:
    """Run the whole command; returns its exit code.

    Raises:
        UserError: no such run or checkpoint, no held-out events, or files that this network cannot take.
    """
    folder = RunFolder(request.run_dir.absolute())
    folder.require()
    run, ds = open_run(folder)
    chosen = checkpoint.resolve(folder.checkpoints, request.checkpoint)
    devices = default_devices() if request.devices is None else request.devices
    check_devices(devices, ds)
    layout = Layout.fit(devices)
    if request.files:
        config, index, positions = _given_files(run.config, request.files, layout, run.job.image_shape)
    else:
        config, index = run.config, run.index
        positions = index.positions("test" if len(index.positions("test")) else "validation").tolist()
    if not positions:
        raise UserError(f"{folder.path}: the run has no held-out events (data.split); give some with --files")
    predictions = folder.free_name("predictions", ".csv")
    figures_file = predictions.with_name(predictions.name.replace("predictions", "evaluation")).with_suffix(".json")
    events_file = folder.logs / f"{predictions.stem}-events.csv"
    write_index(index, events_file)
    ask: dict[str, Any] = {
        "checkpoint": str(chosen),
        "files": config.data.files,
        "events": str(events_file),
        "positions": positions,
    }
    ask |= {"layout": {"data": layout.data}, "predictions": str(predictions), "evaluation": str(figures_file)}
    request_file = folder.logs / f"{predictions.stem}-request.json"
    write_atomically(request_file, json.dumps(ask))
    command = local_command("evaluate", folder.path, devices, ["--request", str(request_file)])
    with console.status(f"evaluating {chosen.name} on {len(positions)} events", spinner="line"):
        code = run_job(command, folder, figures_file, say=lambda text: _say(console, text), on_poll=lambda: None)
    if code == 0:
        figures: dict[str, Any] = json.loads(figures_file.read_text())
        print_evaluation(console, figures)
        console.print(
            f"checkpoint: {chosen}\nscores: {predictions}\nfigures: {figures_file}", soft_wrap=True, highlight=False
        )
    return code


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _given_files(
    config: RunConfig, files: Sequence[str], layout: Layout, trained_shape: tuple[int, int]
) -> tuple[RunConfig, EventIndex, list[int]]:
    """All events of the files that belong to a class of the run."""
    everything = SplitConfig(train=1.0, validation=0.0, test=0.0)
    changes = {"files": tuple(str(Path(name).absolute()) for name in files), "split": everything}
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    opened = open_events(config)
    index = index_events(config, opened)
    job = make_job(config, layout, opened, index)
    if job.image_shape != trained_shape:
        raise UserError(
            f"--files: images of {job.image_shape} wires x ticks, but the run was trained on {trained_shape}; "
            "name the detector in data.detector when training to fix the image size"
        )
    return config, index, index.positions("train").tolist()
