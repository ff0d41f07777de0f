"""`lartpc-ds train`: check everything, claim the run folder, show the plan, run the job, show the result."""

import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import tomli_w
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.overview import print_overview
from lartpc_ds.jobs.resolve import ResolvedRun, prepare_run, reopen_run, resolve
from lartpc_ds.jobs.site import Site, apply_file_locking, with_environment
from lartpc_ds.jobs.site_checks import HostOptions, asked_site, reached_site
from lartpc_ds.jobs.supervise.command import Command, command_of
from lartpc_ds.jobs.supervise.job import run_job
from lartpc_ds.jobs.supervise.progress import JobDisplay
from lartpc_ds.jobs.supervise.stops import RESUMABLE, stoppable
from lartpc_ds.layout import Layout
from lartpc_ds.report.say import say
from lartpc_ds.report.summary import print_summary
from lartpc_ds.training import checkpoint_files
from lartpc_ds.training.prepare import absolute_paths, with_files

__all__ = ["train"]


@stoppable(lambda: "stopped before the first step; give the same command again", (signal.SIGTERM, signal.SIGUSR1))
def train(
    run: str,
    overrides: Sequence[str],
    hosts: HostOptions,
    console: Console,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
) -> int:
    """Run the whole command; returns its exit code.

    Raises:
        UserError: something cannot work; no process was started and nothing was written.
    """
    config, ds = recipes.load(run, overrides)
    config = absolute_paths(config, Path.cwd())
    site = with_environment(asked_site(hosts, ds), config.launch)
    apply_file_locking(site)
    layout = config.layout.fit(site.world_size, hosts.source)
    if resume and not dry_run:
        folder = _resumed_folder(run, run_dir)
        with folder.locked():
            run_id = folder.verified().run
            resolved = reopen_run(folder, config, ds, layout)
            start, damaged = checkpoint_files.newest_whole(folder.checkpoints, run_id)
            site = reached_site(site, resolved.config, resolved.ds, folder, folder.logs, console)
            # nothing has changed so far, and from here on nothing is refused
            folder.write(resolved.config, resolved.ds, resolved.job.as_dict())
            _go_back(folder, start, damaged, console)
            return _run(folder, resolved, site, console, resume=True, verbose=verbose)
    folder = RunFolder(run_dir.absolute() if run_dir else recipes.fresh_path(run))
    if dry_run:
        return _dry_run(folder, config, ds, layout, site, console, resume=resume)
    with _claimed(folder):
        resolved = prepare_run(config, ds, layout, folder, console, look=True)
        site = reached_site(site, resolved.config, resolved.ds, folder, folder.logs, console)
    with folder.locked():
        return _run(folder, resolved, site, console, resume=False, verbose=verbose)


def _resumed_folder(run: str, run_dir: Path | None) -> RunFolder:
    """The folder of the run to continue: that of --run-dir, or RUN itself."""
    if run_dir is None and not recipes.is_folder(run):
        raise UserError("--resume: say which run with --run-dir DIR, or give its folder as RUN")
    return recipes.folder_of(run_dir or Path(run))


def _run(folder: RunFolder, resolved: ResolvedRun, site: Site, console: Console, *, resume: bool, verbose: bool) -> int:
    print_overview(console, folder, resolved, site)
    command = _command(site, folder, resume)
    start = checkpoint_files.latest(folder.checkpoints)
    start_step = 0 if start is None else int(checkpoint_files.manifest(start)["progress"]["step"])
    folder.rewind_metrics(start_step)
    folder.done_file.unlink(missing_ok=True)
    with JobDisplay(folder, resolved.job.max_steps, console, verbose=verbose, start_step=start_step) as display:
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
    elif end.code == RESUMABLE:
        say(console, f"stopped early; continue with the same command and: --run-dir {folder.path} --resume")
    return end.code


def _go_back(folder: RunFolder, start: Path | None, damaged: Mapping[Path, Sequence[str]], console: Console) -> None:
    """Move damaged checkpoints out of the way, and say from which one the run goes on."""
    for path, faults in damaged.items():
        say(console, f"checkpoint {path.name} is damaged: {', '.join(faults)}; it becomes {path.name}.damaged")
    if start is None:
        say(console, "there is no checkpoint yet: the run starts again from its first step")
    else:
        checkpoint_files.go_back(start, list(damaged))
        say(console, f"going on from {'the one before, ' if damaged else ''}{start.name}")
    if garbled := folder.garbled_metrics():
        say(console, f"metrics.jsonl: left out what is no line of ours: line {', '.join(map(str, garbled))}")


def _command(site: Site, folder: RunFolder, resume: bool) -> Command:
    return command_of(site, "train", folder.path, folder.logs, ["--resume"] if resume else [])


@contextmanager
def _claimed(folder: RunFolder) -> Iterator[None]:
    """Claim the folder, and remove it again if the body raises an error or is interrupted."""
    folder.claim()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder.path)
        raise


def _dry_run(
    folder: RunFolder,
    config: RunConfig,
    ds: AskedConfig,
    layout: Layout,
    site: Site,
    console: Console,
    *,
    resume: bool,
) -> int:
    """Do everything but the job in a folder that is thrown away, and show it as if it were in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        thrown_away = RunFolder(Path(scratch) / "run")
        thrown_away.claim()
        resolved = resolve(config, ds, layout, thrown_away, console, look=True)
        if not config.data.files and config.data.target is None:
            resolved = replace(resolved, config=with_files(resolved.config, (str(folder.simulated_file),)))
        print_overview(console, folder, resolved, site)
    command = _command(site, folder, resume)
    settings = [f"{name}={value}" for name, value in command.variables.items() if value is not None]
    tree = resolved.config.model_dump(mode="json", exclude_none=True)
    for title, text in (
        ("# config.toml", tomli_w.dumps(tree)),
        ("# ds_config.json", json.dumps(resolved.ds, indent=2)),
        ("# command", " ".join([*settings, shlex.join(command.arguments)])),
    ):
        say(console, f"\n{title}\n{text}")
    return 0
