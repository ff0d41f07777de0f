"""The folder of a scaling study keeps what was asked, the points, and every repeat of every job."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lartpc_ds.advise.scale.scale_points import ScaleTrial
from lartpc_ds.advise.trials.trial_folder import TrialFolder
from lartpc_ds.report.scaling import Sample

__all__ = ["ScaleFolder"]


@dataclass(frozen=True)
class ScaleFolder(TrialFolder[ScaleTrial, Sample]):
    """Paths of one study's folder, and its small files."""

    stem = "scale"
    noun = "scaling study"

    @property
    def ranks_file(self) -> Path:
        """What every rank has spent on its own work in every step, as CSV."""
        return self.path / "scale-ranks.csv"

    def plot_file(self, model: str) -> Path:
        """The results of one network as a picture."""
        return self.path / f"scale-{re.sub(r'[^A-Za-z0-9._-]', '_', model)}.png"

    def trial_of(self, tree: Mapping[str, Any]) -> ScaleTrial:
        """The inverse of a trial's `as_dict` after a way through JSON."""
        return ScaleTrial.from_dict(tree, str(self.plan_file))

    def result_of(self, tree: Mapping[str, Any]) -> Sample:
        """A result from the fields of its dataclass; TypeError if they are others."""
        return Sample(**tree)
