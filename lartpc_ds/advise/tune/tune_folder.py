"""The folder of a tuning keeps what was asked, the trials, and the result of each, so that it can be resumed.

The trials are written down before the first one runs. Rejected: to plan again on `--resume`, because a search that is
given so many seconds need not come to the same layouts twice, and then a table would be of two tunings.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lartpc_ds.advise.tune.tune_trials import Trial
from lartpc_ds.config.run_folder import RunFolder, claim_folder, lock_held
from lartpc_ds.data.integrity import Damage, FileRecord, fault, seal, sync, unseal, write_atomically
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.differences import differences, shortly
from lartpc_ds.report.tuning import TrialResult

__all__ = ["TuneFolder"]


@dataclass(frozen=True, slots=True)
class TuneFolder:
    """Paths of one tuning's folder, and its small files."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The file that says what was asked, and the trials."""
        return self.path / "tune.json"

    @property
    def hardware_file(self) -> Path:
        """The hardware file of this machine, if the tuning has measured it."""
        return self.path / "hardware.toml"

    @property
    def results_file(self) -> Path:
        """The file with one JSON object per line for each trial that has ended."""
        return self.path / "tune.jsonl"

    @property
    def table_file(self) -> Path:
        """The results as CSV."""
        return self.path / "tune.csv"

    @property
    def plot_file(self) -> Path:
        """The results as a picture."""
        return self.path / "tune.png"

    @property
    def simulated_file(self) -> Path:
        """The events of all trials, where the run simulates its own."""
        return self.path / "simulated.h5"

    def run_folder(self, number: int) -> RunFolder:
        """The run folder of trial `number`, counted from 1."""
        return RunFolder(self.path / f"trial{number:02d}")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, and give it up again if what follows leaves no plan in it.

        Raises:
            UserError: it exists and holds something.
        """
        claim_folder(self.path, "--out", "or add --resume")
        try:
            yield
        finally:
            if not self.plan_file.exists():
                shutil.rmtree(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while trials run, because a second tuning would write over the first.

        Raises:
            UserError: another process holds it.
        """
        refusal = f"--out {self.path}: a tuning is running in it; wait for it or stop it"
        with lock_held(self.path / "lock", refusal):
            yield

    def write_plan(self, asked: Mapping[str, Any], files: Sequence[str], trials: Sequence[Trial]) -> None:
        """Write down what was asked, the event files and the trials."""
        tree: dict[str, Any] = {"asked": asked, "files": files, "trials": [trial.as_dict() for trial in trials]}
        if self.simulated_file.exists():
            sync(self.simulated_file)
            tree["simulated"] = asdict(FileRecord.of(self.simulated_file))
        write_atomically(self.plan_file, seal(tree))

    def read_plan(self, asked: Mapping[str, Any]) -> tuple[tuple[str, ...], list[Trial]]:
        """Read the event files and the trials that were written down.

        Raises:
            UserError: there is no tuning here, it is damaged, or it was asked for something else.
        """
        if not self.plan_file.is_file():
            raise UserError(
                f"--resume: {self.path} has no tuning in it (no tune.json); leave --resume out to start one"
            )
        tree = self._whole_plan()
        changes = differences(tree["asked"], json.loads(json.dumps(asked)))
        changed = [f"{key}: was {shortly(old)}, is {shortly(new)}" for key, old, new in changes]
        if changed:
            raise UserError(
                "\n  ".join([f"--resume: {self.path} holds another tuning:", *changed])
                + "\nGive the options that it was started with, or choose another --out to start anew"
            )
        return tuple(tree["files"]), [Trial.from_dict(one, str(self.plan_file)) for one in tree["trials"]]

    def _whole_plan(self) -> dict[str, Any]:
        try:
            tree = unseal(self.plan_file)
            if "simulated" in tree and (told := fault(self.simulated_file, FileRecord(**tree["simulated"]))):
                raise Damage(told)
        except Damage as damage:
            raise UserError(
                f"--resume: {self.path}: {damage}; restore it from a copy, or choose another --out to start anew"
            ) from None
        return tree

    def append(self, trial: Trial, result: TrialResult) -> None:
        """Add a trial that has ended; a garbled line goes, because the new one could be joined to it."""
        known = {**self.results(), trial.key: result}
        lines = [json.dumps({"key": key, **asdict(one)}) + "\n" for key, one in known.items()]
        write_atomically(self.results_file, "".join(lines))

    def results(self) -> dict[str, TrialResult]:
        """The results of the trials that have ended, by their trial's key.

        A line that is no result of a trial, garbled or cut short by a kill, is left out: its trial runs again.
        """
        found = {}
        if self.results_file.exists():
            for line in self.results_file.read_bytes().split(b"\n"):
                try:
                    tree = json.loads(line)
                    key = tree.pop("key")
                    found[key] = TrialResult(**tree)
                except (ValueError, TypeError, AttributeError, KeyError):
                    continue
        return found
