"""The run folder: the place of everything about a run, and the rules about who may write it.

A fresh run claims a folder that does not exist or is empty; nothing in it is ever replaced by another run. `DONE` is
written last, and only by a run that succeeded, because the exit code of the launcher cannot be trusted (it can be 0
after a kill).

`files.json` has the size and checksum of every file here that shapes numbers (`run_record.py`), and every command that
reads these files compares them.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_record import RunRecord
from lartpc_ds.data.integrity import Damage, FileRecord, sync, write_atomically
from lartpc_ds.errors import UserError

__all__ = ["RunFolder", "claim_folder", "lock_held"]


def claim_folder(path: Path, option: str, advice: str, inside: Sequence[Path] = ()) -> None:
    """Make a folder, and those `inside` of it, for something new.

    Raises:
        UserError: it exists and holds something, and `advice` says what to do about it; or it cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{option} {path}: already exists and is not empty; choose another, {advice}")
    try:
        for folder in (path, *inside):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be made: {error.strerror}") from None


@contextmanager
def lock_held(path: Path, refusal: str) -> Iterator[None]:
    """Inside, no other process holds the lock file; UserError with the `refusal` if one does."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        yield


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run: the paths in it, and its small files."""

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
        """The identity, label and split of every event of the run."""
        return self.path / "events.csv"

    @property
    def findings_file(self) -> Path:
        """What was found when every event was looked at before the run began, one sentence per line."""
        return self.path / "findings.txt"

    @property
    def job_file(self) -> Path:
        """The other facts that ranks need: layout, steps, image size, classes."""
        return self.path / "job.json"

    @property
    def simulated_file(self) -> Path:
        """The events that the run has simulated, if it has no others."""
        return self.path / "simulated.h5"

    @property
    def record_file(self) -> Path:
        """The size and checksum of the files above, as they were written."""
        return self.path / "files.json"

    @property
    def metrics_file(self) -> Path:
        """Training steps and evaluations, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints `step_*`, and of the links `last` and `best`."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """The folder of logs: one per rank, and that of the launcher."""
        return self.path / "logs"

    @property
    def done_file(self) -> Path:
        """The file that marks success."""
        return self.path / "DONE"

    def claim(self) -> None:
        """Make the folder for a fresh run.

        Raises:
            UserError: it exists and holds something.
        """
        claim_folder(self.path, "--run-dir", "or continue it by --resume", (self.logs, self.checkpoints))
        self._lock_file.touch()

    @property
    def is_run(self) -> bool:
        """Whether this is the folder of a run, damaged or not."""
        return self.record_file.is_file() or (self.config_file.is_file() and self.job_file.is_file())

    @property
    def is_begun(self) -> bool:
        """Whether a run was completely prepared here, so that a batch job must resume it and not start anew."""
        return self.job_file.exists() or any(self.checkpoints.glob("step_*"))

    def require(self) -> None:
        """Raise UserError unless this is the folder of a run, damaged or not."""
        if not self.is_run:
            raise UserError(f"{self.path}: not a run folder (no config.toml and job.json in it)")

    def record(self) -> RunRecord:
        """The record of the files as they were written; raises `Damage` if it cannot be read."""
        return RunRecord.read(self.record_file)

    def verified(self, *names: str) -> RunRecord:
        """Compare the files called `names`, or all files, with the record; returns the record if they agree.

        Raises:
            UserError: they do not agree, or there is no record. The folder of an earlier version has none; it is
                refused, because a folder that has lost its record looks the same.
        """
        self.require()
        try:
            record = self.record()
            faults = record.faults(self.path, *names)
        except Damage as damage:
            faults = [str(damage)]
            if not self.record_file.exists():
                faults = [f"{damage} (lost, or never written: an earlier version of lartpc-ds kept no checksums)"]
        if faults:
            raise UserError(
                f"{self.path}: {'; '.join(faults)}. Restore it from a copy, or start a new run in another --run-dir, "
                "with model.weights = a copy of model.pt in one of the checkpoints if it shall go on from there"
            )
        return record

    @property
    def _lock_file(self) -> Path:
        return self.logs / "lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock while a job trains in the folder, because a second job would write over the first.

        Raises:
            UserError: another process holds it.
        """
        self.logs.mkdir(exist_ok=True)
        with lock_held(self._lock_file, f"--run-dir {self.path}: a job is running in it; wait for it or stop it"):
            yield

    def write(self, config: RunConfig, ds: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Write the resolved configurations and the job, and the record of them and of the events in this folder.

        The record is written first, so that a kill at any point leaves a folder that agrees with it. `job.json` is
        written last: by it a batch job tells a run from a folder in which no run was prepared.
        """
        tree = config.model_dump(mode="json", exclude_none=True)
        texts = {
            self.config_file: tomli_w.dumps(tree),
            self.ds_config_file: json.dumps(ds, indent=2) + "\n",
            self.job_file: json.dumps(job, indent=2) + "\n",
        }
        files = {path.name: FileRecord.of_text(text) for path, text in texts.items()}
        if self.record_file.exists():
            before = self.record()
            replaced = {path.name: FileRecord.of(path) for path in texts}
            record = RunRecord(before.run, {**before.files, **files}, replaced)
        else:
            others = (self.events_file, self.simulated_file, self.findings_file)
            files |= {path.name: _lasting(path) for path in others if path.exists()}
            began_with = json.dumps({name: record.blake2b for name, record in files.items()}, sort_keys=True)
            record = RunRecord(FileRecord.of_text(began_with).blake2b, files, {})
        record.write(self.record_file)
        for path, text in texts.items():
            write_atomically(path, text)
        if record.replaced:
            RunRecord(record.run, record.files, {}).write(self.record_file)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one object to `metrics.jsonl`."""
        with self.metrics_file.open("a") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The objects of `metrics.jsonl` in order, without garbled lines and a last line that a kill has cut short."""
        return (line for _, line in self.numbered_metrics() if line is not None)

    def garbled_metrics(self) -> list[int]:
        """The numbers, from 1, of the lines of `metrics.jsonl` that cannot be read."""
        return [number for number, line in self.numbered_metrics() if line is None]

    def numbered_metrics(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """The number, from 1, and the object of each complete line of `metrics.jsonl`; None for a garbled line."""
        if self.metrics_file.exists():
            complete, _, _ = self.metrics_file.read_bytes().rpartition(b"\n")
            for number, text in enumerate(complete.split(b"\n") if complete else [], start=1):
                yield number, _metrics_line(text)

    def rewind_metrics(self, step: int) -> None:
        """Remove the lines after `step`, which a resumed run will write again, and garbled lines."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_atomically(self.metrics_file, "".join(kept))

    def free_name(self, stem: str, suffix: str) -> Path:
        """The first path in the folder that does not exist yet, of stem, stem-2, stem-3 and so on."""
        number = 1
        while (path := self.path / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}").exists():
            number += 1
        return path


def _metrics_line(text: bytes) -> dict[str, Any] | None:
    """The object in a line of `metrics.jsonl`; None if it is not one with a step."""
    try:
        line = json.loads(text)
    except ValueError:  # not JSON, or not UTF-8
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if type(step) is int and step > 0 else None


def _lasting(path: Path) -> FileRecord:
    """Make sure that a file is on the disk, as it must be before its record is; returns the record."""
    sync(path)
    return FileRecord.of(path)
