"""One trial: a short real job through the launcher, and what came of it.

A trial that dies is an answer too. The kernel that runs out of memory ends a rank and not this process, because ranks
offer themselves first (`lartpc_ds.training.worker`).
"""

import json
import re
import shutil
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from lartpc_ds.advise.short_runs.short_run import WARM_UP_STEPS, shortened, steps_of
from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.jobs.site import Site, with_environment
from lartpc_ds.jobs.site_checks import reached_site
from lartpc_ds.jobs.supervise.command import check_devices, command_of
from lartpc_ds.jobs.supervise.job import JobEnd, run_job
from lartpc_ds.jobs.supervise.progress import JobDisplay
from lartpc_ds.jobs.supervise.stops import RESUMABLE
from lartpc_ds.report.tuning import OUT_OF_MEMORY
from lartpc_ds.training.prepare import with_files

__all__ = ["TrialEnd", "failure_of", "run_trial_job"]

# what torch, numpy, the C++ library and the CUDA runtime say; a rank that the kernel kills says nothing
_NO_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|MemoryError|can't allocate memory|Cannot allocate memory|bad_alloc"
)
_KILLED = re.compile(r"was killed[:,]")
_LONGEST_REASON = 160


@dataclass(frozen=True)
class TrialEnd:
    """What came of a job that was not asked to stop."""

    steps: tuple[dict[str, Any], ...] = ()
    """The metrics line of every step, those of the warm-up included; empty if the job failed."""
    failure: str = ""
    """Why the job has not trained to its end: `out of memory`, or the message of a rank."""

    @property
    def timed(self) -> tuple[dict[str, Any], ...]:
        """The lines of the steps after those of the warm-up."""
        return self.steps[WARM_UP_STEPS:]


def run_trial_job(
    config: RunConfig,
    ds: DeepSpeedConfig,
    site: Site,
    files: tuple[str, ...],
    steps: int,
    folder: RunFolder,
    console: Console,
) -> TrialEnd | None:
    """Train a short run and say what came of it; None if it was asked to stop.

    Args:
        config: of the whole run, not of the short one.
        ds: its DeepSpeed JSON.
        site: where the ranks run.
        files: the events of all trials.
        steps: how many are timed, after those of the warm-up.
        folder: where the short run lies; one that an interrupted command has left is replaced.
        console: shows the progress.
    """
    if folder.path.exists():
        shutil.rmtree(folder.path)
    try:
        end = _train(config, ds, site, files, steps, folder, console)
    except UserError as error:  # of this trial, such as a tile without rows: the others may run
        end = JobEnd(2, str(error))
    if end.code == RESUMABLE:
        return None
    if end.code != 0:
        return TrialEnd(failure=failure_of(end.report or f"ended with exit code {end.code}"))
    return TrialEnd(tuple(steps_of(folder)))


def _train(
    config: RunConfig,
    ds: DeepSpeedConfig,
    site: Site,
    files: tuple[str, ...],
    steps: int,
    folder: RunFolder,
    console: Console,
) -> JobEnd:
    config = with_files(shortened(config, steps), files)
    if site.launcher is None:
        check_devices(site.world_size, ds)
    folder.claim()
    layout = config.layout.fit(site.world_size, "the number of ranks")
    resolved = prepare_run(config, json.loads(json.dumps(ds)), layout, folder, console)
    site = with_environment(site, config.launch)
    site = reached_site(site, resolved.config, resolved.ds, folder, folder.logs, console)
    command = command_of(site, "train", folder.path, folder.logs)
    with folder.locked(), JobDisplay(folder, WARM_UP_STEPS + steps, console, verbose=False) as display:
        end = run_job(
            command,
            site,
            folder.logs,
            folder.done_file,
            resumable=lambda: True,  # the whole command is, whether this trial has a checkpoint or not
            say=display.say,
            on_poll=display.poll,
        )
    shutil.rmtree(folder.checkpoints)  # nobody goes on from a trial, and weights fill disks
    return end


def failure_of(report: str) -> str:
    """Say in one line why a job has failed, from its report: `out of memory` and how it shows, or the error."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"rank \d+ failed first", line)] or lines
    for line in told:
        if _NO_MEMORY.search(line):
            return _cut(f"{OUT_OF_MEMORY}: {line}")
    if _KILLED.search(report):
        return f"{OUT_OF_MEMORY}, or killed from outside: a rank was ended by SIGKILL"
    return _cut(told[-1])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."
