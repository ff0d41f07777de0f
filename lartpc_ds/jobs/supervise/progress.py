"""The progress of a running job on the terminal, read from the run folder.

Ranks write files, and this process reads them. So the output of ranks and of DeepSpeed never mixes with the live line,
and a run looks the same to the terminal that started it as to one that joins later.
"""

import json
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.report.say import say
from lartpc_ds.training.metrics import Evaluation

__all__ = ["JobDisplay"]

_PLAIN_SECONDS = 15.0
_GIB = 2**30


class _Tail:
    """A reader of the complete lines that were added to a file since it was last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            complete, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return complete.decode(errors="replace").splitlines() if newline else []


class JobDisplay:
    """One live line on a terminal, or else a plain line now and then; `poll` brings it up to date."""

    def __init__(
        self, folder: RunFolder, max_steps: int, console: Console, *, verbose: bool, start_step: int = 0
    ) -> None:
        self._metrics = _Tail(folder.metrics_file)
        self._logs = [_Tail(folder.logs / name) for name in ("launcher.log", "rank0.log")] if verbose else []
        self._console = console
        self._last_plain = 0.0
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(bar_width=20), TextColumn("{task.completed}/{task.total}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bar = Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting ranks", total=max_steps, completed=start_step)
        self._start_step, self._max_steps = start_step, max_steps

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print one message above the live line."""
        say(self._console, message)

    def poll(self) -> None:
        """Show what is new in the run folder."""
        for log in self._logs:
            for line in log.new_lines():
                self.say(line)
        for text in self._metrics.new_lines():
            line = json.loads(text)
            if "evaluation" in line:
                self.say(_evaluation_text(line))
            else:
                self._step(line)

    def _step(self, line: dict[str, Any]) -> None:
        step, events = line["step"], line["events"] / line["step"]
        accuracy = f"accuracy {line['accuracy']:.3f}  " if "accuracy" in line else ""
        text = (
            f"loss {line['loss']:.4f}  {accuracy}{events / line['step_seconds']:.3g} events/s  "
            f"peak {line['peak_bytes'] / _GIB:.2f} GiB"
        )
        if line.get("skipped_steps"):
            text += f"  {line['skipped_steps']} steps skipped"
        self._bar.update(self._task, completed=step, description=text)
        plain_due = time.monotonic() - self._last_plain > _PLAIN_SECONDS
        if not self._console.is_terminal and (plain_due or step == self._max_steps):
            self._last_plain = time.monotonic()
            self.say(f"step {step}/{self._max_steps}  {text}")


def _evaluation_text(line: dict[str, Any]) -> str:
    figures = Evaluation.from_dict(line["evaluation"])
    missing = figures.absent_classes
    absent = f" without {', '.join(missing)}" if 0 < len(missing) < len(figures.classes) else ""
    return (
        f"step {line['step']}: {figures.events} held-out events: loss {figures.loss:.4f}, balanced accuracy "
        f"{figures.balanced_accuracy}{absent} in {line['seconds']:.1f} s"
    )
