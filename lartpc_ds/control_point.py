"""Where the ranks of a job find the command line that started it, and how the two talk: one JSON object a line."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

__all__ = ["BEAT_SECONDS", "SILENCE_SECONDS", "ControlPoint", "Lines", "message"]

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 20.0
"""After so long without a beat the other end counts as gone: longer than a network hiccup or a paused process."""


@dataclass(frozen=True, slots=True)
class ControlPoint:
    """Where the command line listens, and what it tells every rank of its job: `control.json` in the job's logs."""

    addresses: tuple[str, ...]
    """Of the command line's machine; a rank takes the first that answers."""
    port: int
    token: str
    """Whoever cannot read the run folder does not know it."""
    launcher: str | None
    """Whose variables say which rank a process is; None: DeepSpeed's own launcher sets them."""
    master_addr: str
    master_port: int
    environment: Mapping[str, str]
    """Variables of every rank."""

    def write(self, logs: Path) -> None:
        """For the owner's eyes only."""
        path, partial = logs / "control.json", logs / "control.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(json.dumps(asdict(self)))
        partial.replace(path)

    @classmethod
    def read(cls, logs: Path) -> Self | None:
        """None: nobody listens, because someone started the rank by hand."""
        try:
            tree = json.loads((logs / "control.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**{**tree, "addresses": tuple(tree["addresses"])})

    @staticmethod
    def remove(logs: Path) -> None:
        """Of a job that has ended."""
        (logs / "control.json").unlink(missing_ok=True)


def message(**fields: Any) -> bytes:
    """One line of the conversation."""
    return json.dumps(fields).encode() + b"\n"


class Lines:
    """Messages out of a stream of bytes, when they are complete."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes; ValueError if it is none of ours."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in complete]
