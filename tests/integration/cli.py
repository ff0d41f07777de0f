"""The command line as a user starts it: `python -m lartpc_ds ...` in a process of its own.

Every process of a job inherits one variable of the environment, whatever session, group or parent it moves to; so a
test can ask which processes are left without trusting the code under test.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from lartpc_ds.config.run_folder import RunFolder

__all__ = ["Finished", "Job", "overrides", "run_cli", "started", "steps", "wait_until"]

_MARK = "LARTPC_DS_TEST_JOB"
_TIMEOUT_SECONDS = 120.0  # of what takes a few seconds; a job may wait for a busy machine


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Job:
    """A running command; `folder` is the run folder if it trains."""

    process: "subprocess.Popen[str]"
    mark: str
    folder: RunFolder

    def finish(self, timeout_seconds: float = _TIMEOUT_SECONDS) -> Finished:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=timeout_seconds)
        return Finished(self.process.returncode, out, err)

    def processes(self) -> list[psutil.Process]:
        """All living processes that descend from the command, adopted ones included."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def commands(self, word: str) -> list[psutil.Process]:
        """Those of them whose command line holds `word` as an argument."""
        return [process for process in self.processes() if word in process.cmdline()]

    def wait_for_step(self, step: int) -> None:
        """Until `metrics.jsonl` has this step, or fail with what the command said."""

        def reached() -> bool:
            if self.process.poll() is not None:
                finished = self.finish()
                raise AssertionError(f"ended before step {step}: {finished.out}\n{finished.err}")
            return any(number >= step for number in steps(self.folder))

        wait_until(reached, f"step {step} of {self.folder.path}")


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(_MARK)
    except psutil.Error:  # it has just ended, or belongs to somebody else
        return None


@contextmanager
def started(
    work: Path, *arguments: str, run_dir: str = "run", environment: dict[str, str] | None = None
) -> Iterator[Job]:
    """`lartpc-ds ARGUMENTS` in the folder `work`; whatever of it is left at the end is killed."""
    mark = f"{work}/{run_dir}/{time.monotonic_ns()}"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", _MARK: mark, **(environment or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "lartpc_ds", *arguments],
        cwd=work,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    job = Job(process, mark, RunFolder(work / run_dir))
    try:
        yield job
    finally:
        for left in job.processes():
            left.kill()
        process.communicate()


def run_cli(
    work: Path, *arguments: str, environment: dict[str, str] | None = None, timeout_seconds: float = _TIMEOUT_SECONDS
) -> Finished:
    """The command from start to end."""
    with started(work, *arguments, environment=environment) as job:
        return job.finish(timeout_seconds)


def overrides(settings: Sequence[str]) -> list[str]:
    """`--set` before each."""
    return [part for setting in settings for part in ("--set", setting)]


def steps(folder: RunFolder) -> list[int]:
    """The training steps in `metrics.jsonl`, in order."""
    return [line["step"] for line in folder.metrics() if "loss" in line]


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
    """Poll, or fail naming what did not happen."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_seconds:g} s")
        time.sleep(0.1)
