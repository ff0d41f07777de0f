"""The folder of trials keeps what was asked, the trials, and the result of each, so that they can be resumed.

The trials are written down before the first one runs, so that a resumed command never mixes two questions in one table.
A command that runs trials has a subclass, which says what one of its trials and one of its results is.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from rich.console import Console

from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder, claim_folder, lock_held
from lartpc_ds.data.integrity import Damage, FileRecord, fault, seal, sync, unseal, write_atomically
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.differences import differences, shortly
from lartpc_ds.jobs.embedded import simulated_events

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["TrialFolder"]


class _Written(Protocol):
    """A trial that can be written down."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""


T = TypeVar("T", bound=_Written)
R = TypeVar("R", bound="DataclassInstance")


@dataclass(frozen=True)
class TrialFolder(ABC, Generic[T, R]):
    """Paths of one folder of trials, and its small files."""

    path: Path

    stem: ClassVar[str]
    """The name of the command, and of its files here."""
    noun: ClassVar[str]
    """What the command makes, in messages."""

    @abstractmethod
    def trial_of(self, tree: Mapping[str, Any]) -> T:
        """The inverse of a trial's `as_dict` after a way through JSON."""

    @abstractmethod
    def result_of(self, tree: Mapping[str, Any]) -> R:
        """A result from the fields of its dataclass; TypeError if they are others."""

    @property
    def plan_file(self) -> Path:
        """The file that says what was asked, and the trials."""
        return self.path / f"{self.stem}.json"

    @property
    def results_file(self) -> Path:
        """The file with one JSON object per line for each trial that has ended."""
        return self.path / f"{self.stem}.jsonl"

    @property
    def table_file(self) -> Path:
        """The results as CSV."""
        return self.path / f"{self.stem}.csv"

    @property
    def simulated_file(self) -> Path:
        """The events of all trials, where the run simulates its own."""
        return self.path / "simulated.h5"

    def run_folder(self, number: int) -> RunFolder:
        """The run folder of trial `number`, counted from 1."""
        return RunFolder(self.path / f"trial{number:02d}")

    def events(self, config: RunConfig, console: Console) -> tuple[str, ...]:
        """The event files of all trials, which are simulated if the run has none."""
        if config.data.files or config.data.target is not None:
            return config.data.files
        return simulated_events(config, self.simulated_file, console).data.files

    @property
    def how_to_go_on(self) -> str:
        """What to do when the command was stopped, in a sentence."""
        if not self.plan_file.exists():
            return "stopped before the first trial; give the same command again"
        return f"stopped; what has ended is kept: go on with the same command and: --out {self.path} --resume"

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
        """Hold the folder while trials run, because a second command would write over the first.

        Raises:
            UserError: another process holds it.
        """
        refusal = f"--out {self.path}: a {self.noun} is running in it; wait for it or stop it"
        with lock_held(self.path / "lock", refusal):
            yield

    def write_plan(self, asked: Mapping[str, Any], files: Sequence[str], trials: Sequence[T]) -> None:
        """Write down what was asked, the event files and the trials."""
        tree: dict[str, Any] = {"asked": asked, "files": files, "trials": [trial.as_dict() for trial in trials]}
        if self.simulated_file.exists():
            sync(self.simulated_file)
            tree["simulated"] = asdict(FileRecord.of(self.simulated_file))
        write_atomically(self.plan_file, seal(tree))

    def read_plan(self, asked: Mapping[str, Any]) -> tuple[tuple[str, ...], list[T]]:
        """Read the event files and the trials that were written down.

        Raises:
            UserError: there is no plan here, it is damaged, or it was asked for something else.
        """
        if not self.plan_file.is_file():
            raise UserError(
                f"--resume: {self.path} has no {self.noun} in it (no {self.plan_file.name}); leave --resume out to "
                "start one"
            )
        tree = self._whole_plan()
        changes = differences(tree["asked"], json.loads(json.dumps(asked)))
        changed = [f"{key}: was {shortly(old)}, is {shortly(new)}" for key, old, new in changes]
        if changed:
            raise UserError(
                "\n  ".join([f"--resume: {self.path} holds another {self.noun}:", *changed])
                + "\nGive the options that it was started with, or choose another --out to start anew"
            )
        return tuple(tree["files"]), [self.trial_of(one) for one in tree["trials"]]

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

    def keep(self, key: str, result: R) -> None:
        """Add the result of a trial; a garbled line goes, because the new one could be joined to it."""
        known = {**self.results(), key: result}
        lines = [json.dumps({"key": key, **asdict(one)}) + "\n" for key, one in known.items()]
        write_atomically(self.results_file, "".join(lines))

    def results(self) -> dict[str, R]:
        """The results of the trials that have ended, by their key.

        A line that is no result of a trial, garbled or cut short by a kill, is left out: its trial runs again.
        """
        found = {}
        if self.results_file.exists():
            for line in self.results_file.read_bytes().split(b"\n"):
                try:
                    tree = json.loads(line)
                    key = tree.pop("key")
                    found[key] = self.result_of(tree)
                except (ValueError, TypeError, AttributeError, KeyError):
                    continue
        return found
