"""How the ranks of a job find the command line that started it, and how the two talk: one JSON object per line."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from lartpc_ds.errors import UserError

__all__ = ["BEAT_SECONDS", "SILENCE_SECONDS", "ControlPoint", "Lines", "message"]

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 20.0
"""After so long without a beat the other end counts as gone; a pause of a network or of a process is shorter."""


@dataclass(frozen=True, slots=True)
class ControlPoint:
    """The address of the command line, and what it tells every rank of its job: `control.json` in the job's logs."""

    addresses: tuple[str, ...]
    """Addresses of the command line's machine; a rank takes the first that answers."""
    port: int
    job: str
    """The name of this job of the run: a rank that starts late may find the file of the next job."""
    token: str
    """A secret that only those know who can read the run folder."""
    launcher: str | None
    """The launcher whose variables say which rank a process is; None if DeepSpeed's own launcher sets them."""
    master_addr: str
    master_port: int
    environment: Mapping[str, str]
    """Environment variables that every rank gets."""

    def write(self, logs: Path) -> None:
        """Write `control.json`, readable by its owner only."""
        path, partial = logs / "control.json", logs / "control.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(json.dumps(asdict(self)))
        partial.replace(path)

    @classmethod
    def read(cls, logs: Path, job: str) -> Self:
        """Read the control point of the rank's own job.

        Raises:
            UserError: the job has ended, or another job has taken its place.
        """
        try:
            tree = json.loads((logs / "control.json").read_text())
        except FileNotFoundError:
            tree = {"job": None}
        if tree["job"] != job:
            raise UserError(
                f"{logs}: the command line of job {job} is gone, so no rank of it may start; ranks are started by "
                "`lartpc-ds train` and `evaluate` alone"
            )
        return cls(**{**tree, "addresses": tuple(tree["addresses"])})

    @staticmethod
    def remove(logs: Path) -> None:
        """Remove the file of a job that has ended."""
        (logs / "control.json").unlink(missing_ok=True)


def message(**fields: Any) -> bytes:
    """One message as a line of JSON."""
    return json.dumps(fields).encode() + b"\n"


class Lines:
    """A splitter that takes bytes as they arrive and gives the messages that are complete."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def incomplete_bytes(self) -> int:
        """The number of bytes of the message that has not ended yet."""
        return len(self._rest)

    def add(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes; raises ValueError if the bytes are not messages of ours."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in complete]
        except RecursionError:
            raise ValueError("a message as deep as none of ours") from None
        if not all(isinstance(content, dict) for content in messages):
            raise ValueError("a message is an object")
        return messages
