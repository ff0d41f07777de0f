"""The run folder: where everything about a run lies, and who may write it.

A fresh run claims a folder that does not exist or is empty; nothing in it is ever replaced by another run. `DONE` is
written last and by a run that succeeded, because the launcher's exit code cannot be trusted (it can be 0 after a kill).

`files.json` notes size and checksum of every file here that shapes numbers (`run_record.py`), and every command that
reads them compares.
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
    def simulated_file(self) -> Path:
        """The events, where the run simulates its own."""
        return self.path / "simulated.h5"

    @property
    def record_file(self) -> Path:
        """Size and checksum of the files above, as they were written."""
        return self.path / "files.json"

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
        claim_folder(self.path, "--run-dir", "or continue it by --resume", (self.logs, self.checkpoints))
        self._lock_file.touch()

    @property
    def is_run(self) -> bool:
        """Is this the folder of a run, whole or not?"""
        return self.record_file.is_file() or (self.config_file.is_file() and self.job_file.is_file())

    @property
    def is_begun(self) -> bool:
        """Was a run here prepared to its end, so that a batch job resumes it and must not start anew?"""
        return self.job_file.exists() or any(self.checkpoints.glob("step_*"))

    def require(self) -> None:
        """Raise UserError unless this is the folder of a run, whole or not."""
        if not self.is_run:
            raise UserError(f"{self.path}: not a run folder (no config.toml and job.json in it)")

    def record(self) -> RunRecord:
        """What the files were when they were written; `Damage` if that cannot be known."""
        return RunRecord.read(self.record_file)

    def verified(self, *names: str) -> RunRecord:
        """The record, with which the files called `names`, or all that it knows, agree.

        Raises:
            UserError: they do not, or there is no record. A folder of an earlier version has none; it is refused
                rather than believed, because a folder that has lost its record would look the same.
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
        """Held while a job trains in the folder; a second one would write over the first.

        Raises:
            UserError: another process holds it.
        """
        self.logs.mkdir(exist_ok=True)
        with lock_held(self._lock_file, f"--run-dir {self.path}: a job is running in it; wait for it or stop it"):
            yield

    def write(self, config: RunConfig, ds: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """The resolved configurations and the job, and the record of them and of the events that lie here.

        The record comes first, so that a kill at any point leaves a folder that agrees with it; `job.json` comes last,
        by which a batch job tells a run from one that was never prepared.
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
            began_with = json.dumps({name: one.blake2b for name, one in files.items()}, sort_keys=True)
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
        """All objects of `metrics.jsonl`, in order, without garbled lines and a last one cut short by a kill."""
        return (line for _, line in self.numbered_metrics() if line is not None)

    def garbled_metrics(self) -> list[int]:
        """Numbers of the lines of `metrics.jsonl`, from 1, that are none of ours."""
        return [number for number, line in self.numbered_metrics() if line is None]

    def numbered_metrics(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """All complete lines of `metrics.jsonl`: their numbers, from 1, and their objects; None for a garbled one."""
        if self.metrics_file.exists():
            complete, _, _ = self.metrics_file.read_bytes().rpartition(b"\n")
            for number, text in enumerate(complete.split(b"\n") if complete else [], start=1):
                yield number, _metrics_line(text)

    def rewind_metrics(self, step: int) -> None:
        """Drop lines after `step`, which a resumed run will write again, and garbled ones."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_atomically(self.metrics_file, "".join(kept))

    def free_name(self, stem: str, suffix: str) -> Path:
        """A path in the folder that does not exist yet: stem, stem-2, stem-3, ..."""
        number = 1
        while (path := self.path / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}").exists():
            number += 1
        return path


def _metrics_line(text: bytes) -> dict[str, Any] | None:
    """The object in a line of `metrics.jsonl`; None if there is none with a step."""
    try:
        line = json.loads(text)
    except ValueError:  # not JSON, or not UTF-8
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if type(step) is int and step > 0 else None


def _lasting(path: Path) -> FileRecord:
    """Of a file that another writer has closed: on the disk before its record is."""
    sync(path)
    return FileRecord.of(path)
