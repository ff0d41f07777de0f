"""The run folder: where everything about a run lies, and who may write it.

A fresh run claims a folder that does not exist or is empty; nothing in it is ever replaced by another run. `DONE` is
written last and by a run that succeeded, because the launcher's exit code cannot be trusted (it can be 0 after a kill).
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from lartpc_ds.config import RunConfig
from lartpc_ds.errors import UserError

__all__ = ["RunFolder", "write_atomically"]


def write_atomically(path: Path, text: str) -> None:
    """Write beside and rename: a reader or a crash never meets half a file."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run's folder, and its small files."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved run TOML."""
        return self.path / "config.toml"

    @property
    def ds_config_file(self) -> Path:
        """The resolved DeepSpeed JSON."""
        return self.path / "ds_config.json"

    @property
    def events_file(self) -> Path:
        """Identity, label and split of every event of the run."""
        return self.path / "events.csv"

    @property
    def findings_file(self) -> Path:
        """What a look at every event found before the run began, a sentence a line."""
        return self.path / "findings.txt"

    @property
    def job_file(self) -> Path:
        """What else the ranks need to know: layout, steps, image size, classes."""
        return self.path / "job.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line: training steps and evaluations."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """`step_*`, and the links `last` and `best`."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """One log a rank, and the launcher's."""
        return self.path / "logs"

    @property
    def done_file(self) -> Path:
        """The mark of success."""
        return self.path / "DONE"

    def claim(self) -> None:
        """Make the folder for a fresh run.

        Raises:
            UserError: it exists and holds something.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(
                f"--run-dir {self.path}: already exists and is not empty; choose another, or continue it by --resume"
            )
        try:
            self.logs.mkdir(parents=True)
            self.checkpoints.mkdir()
            self._lock_file.touch()
        except OSError as error:
            raise UserError(f"--run-dir {self.path}: cannot be made: {error.strerror}") from None

    def require(self) -> None:
        """Raise UserError unless this is the folder of a run."""
        if not self.config_file.is_file() or not self.job_file.is_file():
            raise UserError(f"{self.path}: not a run folder (no config.toml and job.json in it)")

    @property
    def _lock_file(self) -> Path:
        return self.logs / "lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held while a job trains in the folder; a second one would write over the first.

        Raises:
            UserError: another process holds it.
        """
        with self._lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"--run-dir {self.path}: a job is running in it; wait for it or stop it") from None
            yield

    def write(self, config: RunConfig, ds: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """The resolved configurations and the job."""
        tree = config.model_dump(mode="json", exclude_none=True)
        write_atomically(self.config_file, tomli_w.dumps(tree))
        write_atomically(self.ds_config_file, json.dumps(ds, indent=2) + "\n")
        write_atomically(self.job_file, json.dumps(job, indent=2) + "\n")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one object to `metrics.jsonl`."""
        with self.metrics_file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """All objects of `metrics.jsonl`, in order; a last line cut short by a kill is left out."""
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    yield json.loads(line)

    def rewind_metrics(self, step: int) -> None:
        """Drop lines after `step`, which a resumed run will write again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_atomically(self.metrics_file, "".join(kept))

    def free_name(self, stem: str, suffix: str) -> Path:
        """A path in the folder that does not exist yet: stem, stem-2, stem-3, ..."""
        number = 1
        while (path := self.path / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}").exists():
            number += 1
        return path
