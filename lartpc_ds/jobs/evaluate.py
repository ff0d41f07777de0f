"""`lartpc-ds evaluate`: run a checkpoint on the held-out events of its run, or on files that the user gives."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig, SplitConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.event_index import EventIndex, write_index
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.site import Site, apply_file_locking, with_environment
from lartpc_ds.jobs.site_checks import HostOptions, asked_site, reached_site
from lartpc_ds.jobs.supervise.command import command_of, default_devices
from lartpc_ds.jobs.supervise.job import run_job
from lartpc_ds.jobs.surveyed import print_findings, surveyed_index
from lartpc_ds.layout import Layout
from lartpc_ds.report.summary import print_evaluation
from lartpc_ds.training import checkpoint_files
from lartpc_ds.training.evaluation import EvaluationRequest
from lartpc_ds.training.metrics import Evaluation
from lartpc_ds.training.prepare import Run
from lartpc_ds.training.session import open_run
from lartpc_ds.training.sources import open_source

__all__ = ["evaluate_checkpoint"]


def evaluate_checkpoint(
    run_dir: Path, files: Sequence[str], checkpoint: str, hosts: HostOptions, console: Console
) -> int:
    """Run the whole command; returns its exit code.

    Raises:
        UserError: there is no such run or checkpoint, there are no held-out events, the network cannot take the files,
            or the hosts cannot take the job.
    """
    folder = recipes.folder_of(run_dir)
    simulated = [] if files else [folder.simulated_file]
    needed = (folder.config_file, folder.ds_config_file, folder.job_file, folder.events_file, *simulated)
    folder.verified(*(path.name for path in needed))
    run, ds = open_run(folder)
    chosen = _whole(run, checkpoint)
    site, layout = _site(hosts, run, ds)
    apply_file_locking(site)
    config, index, positions = _events(run, ds, files, console)
    if not positions:
        raise UserError(f"{folder.path}: the run has no held-out events (data.split); give some with --files")
    # the training itself ends with predictions.csv; for dense models there are only logs and figures
    logs = RunFolder(folder.logs).free_name(f"predictions-{chosen.name}", "")
    logs.mkdir()
    site = reached_site(site, config, ds, folder, logs, console)
    predictions = folder.path / f"{logs.name}.csv"
    figures_file = folder.path / f"{predictions.stem.replace('predictions', 'evaluation')}.json"
    write_index(index, logs / "events.csv")
    EvaluationRequest(
        checkpoint=chosen,
        files=config.data.files,
        events=logs / "events.csv",
        positions=tuple(positions),
        layout=layout,
        predictions=predictions,
        evaluation=figures_file,
    ).write(logs / "request.json")
    command = command_of(site, "evaluate", folder.path, logs, ["--request", str(logs / "request.json")])
    with console.status(f"evaluating {chosen.name} on {len(positions)} events", spinner="line"):
        end = run_job(
            command, site, logs, figures_file, resumable=lambda: False, say=console.print, on_poll=lambda: None
        )
    if end.report is not None:
        print(end.report, file=sys.stderr)
    if end.code == 0:
        print_evaluation(console, Evaluation.from_dict(json.loads(figures_file.read_text())))
        scores = f"scores: {predictions}\n" if predictions.exists() else ""
        console.print(f"checkpoint: {chosen}\n{scores}figures: {figures_file}", soft_wrap=True, highlight=False)
    return end.code


def _whole(run: Run, name: str) -> Path:
    """The checkpoint called `name`; raises UserError unless its weights are those that the run has written."""
    folder = run.folder.checkpoints
    chosen = checkpoint_files.resolve(folder, name)
    if faults := checkpoint_files.faults(chosen, run.name, "model.pt"):
        others = [path.name for path in checkpoint_files.complete(folder) if path.name != chosen.name]
        other = f"take another with --checkpoint: {', '.join(others)}" if others else "there is no other"
        raise UserError(f"checkpoint {chosen}: {', '.join(faults)}; {other}")
    return chosen


def _site(hosts: HostOptions, run: Run, ds: DeepSpeedConfig) -> tuple[Site, Layout]:
    """Where the ranks run and how they share the work, with the tiles that the training had and without its stages.

    Raises:
        UserError: as `asked_site`, or the number of ranks is no multiple of the number of tiles.
    """
    rows, cols = run.job.layout.rows, run.job.layout.cols
    if hosts.hostfile is None and hosts.devices is None:
        hosts = replace(hosts, devices=max(default_devices() // (rows * cols), 1) * rows * cols)
    site = with_environment(asked_site(hosts, ds), run.config.launch)
    return site, Layout.fit(site.world_size, rows=rows, cols=cols, source=hosts.source)


def _events(
    run: Run, ds: DeepSpeedConfig, files: Sequence[str], console: Console
) -> tuple[RunConfig, EventIndex, list[int]]:
    """The configuration, the table of events and the positions to evaluate: those held out, or those of `files`."""
    if files:
        return _given_files(run, ds, files, console)
    index = run.index
    return run.config, index, index.positions("test" if len(index.positions("test")) else "validation").tolist()


def _given_files(
    run: Run, ds: DeepSpeedConfig, files: Sequence[str], console: Console
) -> tuple[RunConfig, EventIndex, list[int]]:
    """The events of the files that belong to a class of the run, after each was looked at."""
    if run.config.data.target is not None:
        raise UserError(
            f"--files: the run's images come from data.target = {run.config.data.target!r}, not from files; leave "
            "--files out"
        )
    everything = SplitConfig(train=1.0, validation=0.0, test=0.0)
    changes: dict[str, Any] = {"files": tuple(str(Path(name).absolute()) for name in files), "split": everything}
    if run.config.data.duplicates == "error":  # here nothing trains, so no event can be in training and test
        changes["duplicates"] = "keep"
    config = run.config.model_copy(update={"data": run.config.data.model_copy(update=changes)})
    source = open_source(config, needs_every_class=False)
    if source.labels is not None and (source.labels < 0).all():
        raise UserError(
            f"--files: none of their {len(source.labels)} events is of a class of the run, {', '.join(source.classes)}"
        )
    given = (source.image_shape[0], *source.recorded_shape)
    trained = (run.job.planes, *run.job.image_shape)
    if given != trained:
        raise UserError(
            f"--files: images of {given[0]} planes x {given[1]} wires x {given[2]} ticks, but the run was trained on "
            f"{trained[0]} planes x {trained[1]} x {trained[2]}; give data.detector when training to fix it"
        )
    index, findings = surveyed_index(config, ds, source, console)
    print_findings(console, findings)
    return config, index, index.positions("train").tolist()
