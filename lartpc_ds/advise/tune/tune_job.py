"""One trial of a tuning: a short real job on this machine, and the measured figures beside the predicted ones."""

import statistics

from rich.console import Console

from lartpc_ds.advise.trials.trial_job import failure_of, run_trial_job
from lartpc_ds.advise.tune.tune_trials import Trial
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.site import here
from lartpc_ds.report.tuning import TrialResult

__all__ = ["failure_of", "run_trial"]


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
    end = run_trial_job(trial.config, trial.ds, here(trial.layout.world_size), files, steps, folder, console)
    if end is None:
        return None
    known = (trial.name, trial.global_batch, trial.predicted_step_seconds, trial.predicted_peak_bytes)
    if end.failure:
        return TrialResult(*known, failure=end.failure)
    seconds = statistics.median(line["step_seconds"] for line in end.timed)
    return TrialResult(*known, seconds, max(line["peak_bytes"] for line in end.steps))
