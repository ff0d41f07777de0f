"""Where the time of a step goes on one rank: reading, the passes, messages, and the update of the weights.

A phase within a phase counts for itself only, so the phases add up to the step. Time in which a rank waits for others
is that of the messages: it is told apart from what the rank computes, because the slowest rank waits least. On CUDA the
phases are marked in the stream and read when the step is over, so that no kernel waits for a clock. Rejected:
DeepSpeed's own breakdown (`wall_clock_breakdown`), which waits for the device at every mark and knows no tiles.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial, wraps
from typing import Any, Generic, Literal, TypeVar

import torch

from lartpc_ds.exact.grid.tiles import Traffic

__all__ = ["Phase", "PhaseSeconds", "StepClock", "Timed"]

Phase = Literal["read", "forward", "backward", "update", "reduce", "halo", "stage", "other"]
T = TypeVar("T")

_COLLECTIVES = (
    *("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast", "all_reduce_coalesced"),
    *("all_gather", "all_gather_into_tensor", "all_gather_base", "all_gather_coalesced", "barrier"),
)
_MESSAGES = ("send", "recv")
"""What DeepSpeed's backend of communication calls collectives, and messages between stages."""


@dataclass(slots=True)
class PhaseSeconds:
    """The seconds of a step that a rank spends on each phase."""

    read: float = 0.0
    """Waiting for the next micro-batch."""
    forward: float = 0.0
    backward: float = 0.0
    update: float = 0.0
    """The optimizer."""
    reduce: float = 0.0
    """The collectives of gradients and weights, and waiting in them for other ranks."""
    halo: float = 0.0
    """The messages between tiles, and waiting for them."""
    stage: float = 0.0
    """The messages between pipeline stages, and waiting for them."""
    other: float = 0.0

    @property
    def busy(self) -> float:
        """What the rank spends on its own work."""
        return self.read + self.forward + self.backward + self.update

    def as_row(self) -> list[float]:
        """The seconds in the order of the fields."""
        return [float(getattr(self, field.name)) for field in fields(self)]


class StepClock:
    """Counts the phases of a step; `traffic` knows the time in which a rank waits for other tiles."""

    def __init__(self, device: torch.device, traffic: Traffic) -> None:
        self._traffic = traffic
        self._events = device.type == "cuda"
        self._phases: list[Phase] = ["other"]
        self._marks: list[tuple[Phase, float, Any]] = []
        self._runs = False

    def start(self) -> None:
        """Begin a step; nothing is counted between steps."""
        self._marks, self._runs = [], True
        self._mark()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time inside for a phase, but for the phases within it."""
        self._mark()
        self._phases.append(name)
        try:
            yield
        finally:
            self._mark()
            self._phases.pop()

    def stop(self) -> PhaseSeconds:
        """End the step, and return its seconds; on CUDA this waits for the end of its kernels."""
        self._mark()
        self._runs = False
        seconds = PhaseSeconds()
        if self._events:
            self._marks[-1][2].synchronize()
        for (_, waited, before), (phase, waited_then, now) in zip(self._marks, self._marks[1:], strict=False):
            passed = before.elapsed_time(now) / 1e3 if self._events else now - before
            halo = min(waited_then - waited, passed)
            seconds.halo += halo
            setattr(seconds, phase, getattr(seconds, phase) + passed - halo)
        return seconds

    def _mark(self) -> None:
        """Say that everything since the last mark was the phase at hand."""
        if not self._runs:
            return
        now: Any = time.perf_counter()
        if self._events:
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        self._marks.append((self._phases[-1], self._traffic.wait_seconds, now))

    def timed(self, phase: Phase, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time, and the time in which the handle that it gives is waited for, as a phase."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                result = function(*args, **kwargs)
            return _Handle(self, phase, result) if hasattr(result, "wait") else result

        return run

    def watch(self, backend: Any) -> None:
        """Count the time that DeepSpeed spends in its backend of communication (`deepspeed.comm.comm.cdb`)."""
        phases: tuple[tuple[Phase, tuple[str, ...]], ...] = (("reduce", _COLLECTIVES), ("stage", _MESSAGES))
        for phase, names in phases:
            for name in names:
                plain = partial(getattr(type(backend), name), backend)  # another engine may have watched it before
                setattr(backend, name, self.timed(phase, plain))


class _Handle:
    """What DeepSpeed waits for."""

    def __init__(self, clock: StepClock, phase: Phase, handle: Any) -> None:
        self._clock, self._phase, self._handle = clock, phase, handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with self._clock.phase(self._phase):
            return self._handle.wait(*args, **kwargs)


class Timed(Generic[T]):
    """The items of an iterator, whose making is the phase `read`; it keeps no item."""

    def __init__(self, items: Iterator[T], clock: StepClock) -> None:
        self._items, self._clock = items, clock

    def __iter__(self) -> "Timed[T]":
        return self

    def __next__(self) -> T:
        with self._clock.phase("read"):
            return next(self._items)
