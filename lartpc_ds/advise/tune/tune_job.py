"""One trial of a tuning: a short real job through the launcher, and what came of it.

A trial that dies is an answer too. The kernel that runs out of memory ends a rank and not this process, because ranks
offer themselves first (`lartpc_ds.training.worker`).
"""

import json
import re
import shutil
import statistics

from rich.console import Console

from lartpc_ds.advise.short_runs.short_run import WARM_UP_STEPS, prepared, shortened, steps_of
from lartpc_ds.advise.tune.tune_trials import Trial
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.site import here, with_environment
from lartpc_ds.jobs.supervise.command import command_of
from lartpc_ds.jobs.supervise.job import JobEnd, run_job
from lartpc_ds.jobs.supervise.progress import JobDisplay
from lartpc_ds.jobs.supervise.stops import RESUMABLE
from lartpc_ds.report.tuning import OUT_OF_MEMORY, TrialResult
from lartpc_ds.training.prepare import with_files

__all__ = ["failure_of", "run_trial"]

# what torch, numpy, the C++ library and the CUDA runtime say; a rank that the kernel kills says nothing
_NO_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|MemoryError|can't allocate memory|Cannot allocate memory|bad_alloc"
)
_KILLED = re.compile(r"was killed[:,]")
_LONGEST_REASON = 160


def run_trial(
    trial: Trial, files: tuple[str, ...], steps: int, folder: RunFolder, console: Console
) -> TrialResult | None:
    """Train the trial's short run and say what came of it; None if it was asked to stop.

    Args:
        trial: what to run.
        files: the events of all trials.
        steps: how many are timed, after those of the warm-up.
        folder: where the short run lies; one that an interrupted tuning has left is replaced.
        console: shows the progress.
    """
    if folder.path.exists():
        shutil.rmtree(folder.path)
    try:
        end = _train(trial, files, steps, folder, console)
    except UserError as error:  # of this trial, such as a tile without rows: the others may run
        end = JobEnd(2, str(error))
    if end.code == RESUMABLE:
        return None
    known = (trial.name, trial.global_batch, trial.predicted_step_seconds, trial.predicted_peak_bytes)
    if end.code != 0:
        return TrialResult(*known, failure=failure_of(end.report or f"ended with exit code {end.code}"))
    lines = steps_of(folder)
    seconds = statistics.median(line["step_seconds"] for line in lines[WARM_UP_STEPS:])
    return TrialResult(*known, seconds, max(line["peak_bytes"] for line in lines))


def _train(trial: Trial, files: tuple[str, ...], steps: int, folder: RunFolder, console: Console) -> JobEnd:
    config = with_files(shortened(trial.config, steps), files)
    prepared(config, json.loads(json.dumps(trial.ds)), trial.layout, folder.path, console)
    site = with_environment(here(trial.layout.world_size), config.launch)
    command = command_of(site, "train", folder.path, folder.logs)
    with folder.locked(), JobDisplay(folder, WARM_UP_STEPS + steps, console, verbose=False) as display:
        end = run_job(
            command,
            site,
            folder.logs,
            folder.done_file,
            resumable=lambda: True,  # the tuning is, whether this trial has a checkpoint or not
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
