"""`lartpc-ds train`: check everything, claim the folder, show the plan, run the job, show the result."""

import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console

from lartpc_ds.config import ds_config, recipes
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.event_index import EventIndex, write_index
from lartpc_ds.data.integrity import write_atomically
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.differences import differences, shortly
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.jobs.plan import print_plan
from lartpc_ds.jobs.site import Site, apply_file_locking, with_environment
from lartpc_ds.jobs.site_checks import asked_site, reached_site, source_of
from lartpc_ds.jobs.supervise.command import (
    Command,
    command_of,
)
from lartpc_ds.jobs.supervise.job import run_job
from lartpc_ds.jobs.supervise.progress import JobDisplay
from lartpc_ds.jobs.supervise.stops import stoppable
from lartpc_ds.jobs.surveyed import print_findings, surveyed_index
from lartpc_ds.layout import Layout
from lartpc_ds.report.summary import print_summary
from lartpc_ds.training import checkpoint_files
from lartpc_ds.training.prepare import Job, absolute_paths, make_job, with_files
from lartpc_ds.training.session import open_run
from lartpc_ds.training.sources import index_events, open_source

__all__ = ["ResolvedRun", "TrainRequest", "prepare_run", "train"]

# a resumed run may be longer, and may look and save more often; anything else would make it another run
_MAY_CHANGE = {
    *("train.max_steps", "train.epochs", "train.eval_every", "train.checkpoint_every", "data.workers"),
    "max_steps",  # the job's, which follows from the first two
}
# and so may whole sections: where and how a run runs, and the schedule, which is as long as the run
_SECTIONS_MAY_CHANGE = ("batch.", "launch.", "ds.scheduler.")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The command line of `train`."""

    run: str
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    devices: int | None = None
    hostfile: Path | None = None
    launcher: str | None = None
    include: str = ""
    exclude: str = ""
    resume: bool = False
    dry_run: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run that has passed every check."""

    config: RunConfig
    ds: dict[str, Any]
    job: Job
    index: EventIndex
    findings: tuple[str, ...] = ()
    """What a look at every event found, a sentence each."""


def train(request: TrainRequest, console: Console) -> int:
    """Run the whole command; returns its exit code.

    Raises:
        UserError: before any process starts and before anything is written, for whatever cannot work.
    """
    # nothing is lost before the job runs
    told = "stopped before the first step; give the same command again"
    with stoppable(lambda: told, (signal.SIGTERM, signal.SIGUSR1)):
        return _train(request, console)


def _train(request: TrainRequest, console: Console) -> int:
    config, ds = recipes.load(request.run, request.overrides)
    config = absolute_paths(config, Path.cwd())
    site = with_environment(asked_site(request, ds), config.launch)
    apply_file_locking(site)
    axes = config.layout
    layout = Layout.fit(
        site.world_size, pipe=axes.pipe, data=axes.data, rows=axes.rows, cols=axes.cols, source=source_of(request)
    )
    if request.dry_run:
        return _dry_run(request, config, ds, layout, site, console)
    if request.resume:
        folder = _resumed_folder(request)
        with folder.locked():
            run = folder.verified().run
            resolved = _reopen(folder, config, ds, layout)
            start, damaged = checkpoint_files.newest_whole(folder.checkpoints, run)
            site = reached_site(site, resolved.config, resolved.ds, folder, folder.logs, console)
            # nothing has changed so far, and from here on nothing is refused
            folder.write(resolved.config, resolved.ds, resolved.job.as_dict())
            _go_back(folder, start, damaged, console)
            return _run(folder, resolved, site, console, request)
    folder = RunFolder(request.run_dir.absolute() if request.run_dir else recipes.fresh_path(request.run))
    with _claimed(folder):
        resolved = prepare_run(config, ds, layout, folder, console, look=True)
        site = reached_site(site, resolved.config, resolved.ds, folder, folder.logs, console)
    with folder.locked():
        return _run(folder, resolved, site, console, request)


def _resumed_folder(request: TrainRequest) -> RunFolder:
    """The folder of the run to go on with: of --run-dir, or RUN itself."""
    if request.run_dir is not None:
        return recipes.folder_of(request.run_dir)
    if not recipes.is_folder(request.run):
        raise UserError("--resume: say which run with --run-dir DIR, or give its folder as RUN")
    return recipes.folder_of(Path(request.run))


def _run(folder: RunFolder, resolved: ResolvedRun, site: Site, console: Console, request: TrainRequest) -> int:
    job = resolved.job
    print_findings(console, resolved.findings)
    print_plan(console, folder, resolved.config, resolved.ds, job, resolved.index, site)
    command = _command(site, folder.path, request)
    start = checkpoint_files.latest(folder.checkpoints) if request.resume else None
    start_step = 0 if start is None else int(checkpoint_files.manifest(start)["progress"]["step"])
    folder.rewind_metrics(start_step)
    folder.done_file.unlink(missing_ok=True)
    with JobDisplay(folder, job.max_steps, console, verbose=request.verbose, start_step=start_step) as display:
        end = run_job(
            command,
            site,
            folder.logs,
            folder.done_file,
            resumable=lambda: checkpoint_files.latest(folder.checkpoints) is not None,
            say=display.say,
            on_poll=display.poll,
        )
    if end.report is not None:
        print(end.report, file=sys.stderr)
    if end.code == 0:
        print_summary(console, [folder])
    elif end.code == 75:
        console.print(
            f"stopped early; continue with the same command and: --run-dir {folder.path} --resume", soft_wrap=True
        )
    return end.code


def _go_back(folder: RunFolder, start: Path | None, damaged: Mapping[Path, Sequence[str]], console: Console) -> None:
    """Say from where the run goes on, and put what is not whole out of its way."""
    for path, faults in damaged.items():
        _say(console, f"checkpoint {path.name} is damaged: {', '.join(faults)}; it becomes {path.name}.damaged")
    if start is None:
        _say(console, "there is no checkpoint yet: the run starts again from its first step")
    else:
        checkpoint_files.go_back(start, list(damaged))
        _say(console, f"going on from {'the one before, ' if damaged else ''}{start.name}")
    if garbled := folder.garbled_metrics():
        _say(console, f"metrics.jsonl: left out what is no line of ours: line {', '.join(map(str, garbled))}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _command(site: Site, path: Path, request: TrainRequest) -> Command:
    return command_of(site, "train", path, path / "logs", ["--resume"] if request.resume else [])


@contextmanager
def _claimed(folder: RunFolder) -> Iterator[None]:
    """Claim the folder, and give it up again if what follows finds the input at fault or is interrupted."""
    folder.claim()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder.path)
        raise


def prepare_run(
    config: RunConfig,
    ds: dict[str, Any],
    layout: Layout,
    folder: RunFolder,
    console: Console,
    *,
    look: bool = False,
) -> ResolvedRun:
    """Check a fresh run and write what its ranks read into `folder`, which must be claimed.

    With `look` at every event first, for a run that is more than a measurement of speed.
    """
    resolved = _resolve(config, ds, layout, folder, console, look=look)
    write_index(resolved.index, folder.events_file)
    if resolved.findings:
        write_atomically(folder.findings_file, "".join(f"{line}\n" for line in resolved.findings))
    folder.write(resolved.config, resolved.ds, resolved.job.as_dict())
    return resolved


def _resolve(
    config: RunConfig, ds: dict[str, Any], layout: Layout, folder: RunFolder, console: Console, *, look: bool
) -> ResolvedRun:
    if not config.data.files and config.data.target is None:
        config = simulated_events(config, folder.simulated_file, console)
    source = open_source(config)
    index, findings = surveyed_index(config, ds, source, console) if look else (index_events(config, source), ())
    job = make_job(config, ds, layout, source, index)
    return ResolvedRun(config, ds_config.complete(ds, config, layout, job.max_steps), job, index, findings)


def _reopen(folder: RunFolder, config: RunConfig, ds: dict[str, Any], layout: Layout) -> ResolvedRun:
    """The run as it was saved, with what a resumed run may change.

    Raises:
        UserError: the configurations ask for another run than the one it holds.
    """
    run, saved_ds = open_run(folder)
    if not config.data.files and config.data.target is None:  # the embedded default lies in the folder
        config = with_files(config, run.config.data.files)
    job = make_job(config, ds, layout, open_source(config), run.index)
    if layout == run.job.layout:  # what balances the stages may have changed since, and it matters to no number
        job = replace(job, stages=run.job.stages)
    fresh_ds = ds_config.complete(ds, config, layout, job.max_steps)
    changed = [
        f"{key}: was {shortly(old)}, is {shortly(new)}"
        for key, old, new in [
            *differences(run.config.model_dump(mode="json"), config.model_dump(mode="json")),
            *differences(run.job.as_dict(), job.as_dict()),
            *differences(saved_ds, fresh_ds, "ds."),
        ]
        if key not in _MAY_CHANGE and not key.startswith(_SECTIONS_MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            "\n  ".join([f"--resume: {folder.path} holds another run:", *changed])
            + "\nGive the options that the run was started with, or choose another --run-dir to start anew"
        )
    findings = folder.findings_file.read_text().splitlines() if folder.findings_file.exists() else []
    return ResolvedRun(config, fresh_ds, job, run.index, tuple(findings))


def _dry_run(
    request: TrainRequest, config: RunConfig, ds: dict[str, Any], layout: Layout, site: Site, console: Console
) -> int:
    """Everything but the job: in a folder that is thrown away."""
    path = request.run_dir.absolute() if request.run_dir else recipes.fresh_path(request.run)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.claim()
        resolved = _resolve(config, ds, layout, folder, console, look=True)
        if not config.data.files and config.data.target is None:
            resolved = replace(resolved, config=with_files(resolved.config, (str(RunFolder(path).simulated_file),)))
        print_findings(console, resolved.findings)
        print_plan(console, RunFolder(path), resolved.config, resolved.ds, resolved.job, resolved.index, site)
    command = _command(site, path, request)
    settings = [f"{name}={value}" for name, value in command.variables.items() if value is not None]
    tree = resolved.config.model_dump(mode="json", exclude_none=True)
    for title, text in (
        ("# config.toml", tomli_w.dumps(tree)),
        ("# ds_config.json", json.dumps(resolved.ds, indent=2)),
        ("# command", " ".join([*settings, shlex.join(command.arguments)])),
    ):
        console.print(f"\n{title}\n{text}", markup=False, highlight=False, soft_wrap=True)
    return 0
