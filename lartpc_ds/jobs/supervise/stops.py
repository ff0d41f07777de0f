"""A stop request while no job runs: the command says how to go on, and ends as a job does that can be resumed."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["RESUMABLE", "stoppable"]

RESUMABLE = 75
"""The exit code of a command that was stopped and can go on."""


@contextmanager
def stoppable(how_to_go_on: Callable[[], str], signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Inside, each of the signals ends this process with a sentence; while a job runs, the job has the signals."""

    def stop(number: int, frame: FrameType | None) -> None:
        print(how_to_go_on(), file=sys.stderr)
        sys.exit(RESUMABLE)

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
