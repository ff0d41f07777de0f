"""The folder of a tuning keeps what was asked, the trials, and the result of each, so that it can be resumed.

Rejected: to plan again on `--resume`, because a search that is given so many seconds need not come to the same layouts
twice, and then a table would be of two tunings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lartpc_ds.advise.trials.trial_folder import TrialFolder
from lartpc_ds.advise.tune.tune_trials import Trial
from lartpc_ds.report.tuning import TrialResult

__all__ = ["TuneFolder"]


@dataclass(frozen=True)
class TuneFolder(TrialFolder[Trial, TrialResult]):
    """Paths of one tuning's folder, and its small files."""

    stem = "tune"
    noun = "tuning"

    @property
    def hardware_file(self) -> Path:
        """The hardware file of this machine, if the tuning has measured it."""
        return self.path / "hardware.toml"

    @property
    def plot_file(self) -> Path:
        """The results as a picture."""
        return self.path / "tune.png"

    def trial_of(self, tree: Mapping[str, Any]) -> Trial:
        """The inverse of a trial's `as_dict` after a way through JSON."""
        return Trial.from_dict(tree, str(self.plan_file))

    def result_of(self, tree: Mapping[str, Any]) -> TrialResult:
        """A result from the fields of its dataclass; TypeError if they are others."""
        return TrialResult(**tree)

    def append(self, trial: Trial, result: TrialResult) -> None:
        """Add a trial that has ended."""
        self.keep(trial.key, result)
