"""Events and files of single particles.

An event depends on (seed, index) alone: its own generator is made from them, so any number of workers in any order
gives the same file. One generator a worker would be simpler and would tie the events to the machine.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lartpc_ds.data.event import Event, EventId
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.data.processes import map_in_processes
from lartpc_ds.data.simulation.drift import drift
from lartpc_ds.data.simulation.kinematics import isotropic
from lartpc_ds.data.simulation.particles import PRIMARIES, Flight, primary_pdg
from lartpc_ds.data.simulation.response import plane_pixels
from lartpc_ds.data.simulation.transport import transport
from lartpc_ds.detectors import Detector, detector
from lartpc_ds.errors import UserError

__all__ = ["SimulationSummary", "simulate_event", "simulate_file"]

_HIGHEST_GEV = 20.0
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class SimulationSummary:
    """What a call of simulate_file wrote, and how fast."""

    events: int
    seconds: float
    events_per_second: float
    class_counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Job:
    """All that an event depends on besides its index; picklable."""

    file: str
    detector_name: str
    classes: tuple[str, ...]
    momentum_gev: tuple[float, float]
    seed: int


def simulate_event(
    detector: Detector, species: str, momentum_gev: float, rng: np.random.Generator, id: EventId
) -> Event:
    """One particle of class `species`, placed uniformly in the active volume and flying in any direction alike.

    Raises:
        UserError: a class that is not simulated, or a momentum out of range.
    """
    _check_momentum((momentum_gev, momentum_gev))
    pdg = primary_pdg(species, rng)
    low, high = np.array([detector.x_cm, detector.y_cm, detector.z_cm]).T
    primary = Flight(pdg, isotropic(1, rng)[0] * momentum_gev * 1e3, rng.uniform(low, high), 0.0)
    deposits, truth = transport(primary, detector, rng)
    clouds = drift(deposits, detector)
    planes = tuple(plane_pixels(clouds, number, detector, rng) for number in range(len(detector.planes)))
    return Event(id, planes, truth.rows(deposits))


def simulate_file(
    out: Path,
    detector_name: str,
    *,
    num_events: int,
    classes: Sequence[str],
    momentum_gev: tuple[float, float],
    seed: int,
    workers: int,
    on_event: Callable[[int], None] | None = None,
) -> SimulationSummary:
    """Writes `num_events` events to the larcv3 file `out`; the classes take turns.

    `on_event` is called with the number of events written so far. Event ids: run 1, subrun `seed`, event = index.

    Raises:
        UserError: an unknown detector or class, a number out of range, or an `out` that exists.
    """
    detector(detector_name)
    _check(num_events, classes, momentum_gev, seed, workers)
    job = _Job(out.name, detector_name, tuple(classes), momentum_gev, seed)
    started = time.perf_counter()
    with Larcv3Writer(out) as writer:
        for written, event in enumerate(_events(job, num_events, workers), start=1):
            writer.write(event)
            if on_event is not None:
                on_event(written)
    seconds = time.perf_counter() - started
    counts = {name: len(range(turn, num_events, len(classes))) for turn, name in enumerate(classes)}
    return SimulationSummary(num_events, seconds, num_events / seconds, counts)


def _events(job: _Job, num_events: int, workers: int) -> Iterator[Event]:
    """The events of a job in order."""
    return map_in_processes(partial(_indexed_event, job), range(num_events), workers, _CHUNK)


def _indexed_event(job: _Job, index: int) -> Event:
    rng = np.random.default_rng([job.seed, index])
    species = job.classes[index % len(job.classes)]
    momentum_gev = float(rng.uniform(*job.momentum_gev))
    event_id = EventId(job.file, index, run=1, subrun=job.seed, event=index)
    return simulate_event(detector(job.detector_name), species, momentum_gev, rng, event_id)


def _check(num_events: int, classes: Sequence[str], momentum_gev: tuple[float, float], seed: int, workers: int) -> None:
    """All of the user's numbers, before anything is made."""
    for name, value, least in (("events", num_events, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value < least:
            raise UserError(f"{name} = {value} is too small: give at least {least}")
    unknown = [name for name in classes if name not in PRIMARIES]
    if unknown or not classes or len(set(classes)) < len(classes):
        raise UserError(
            f"classes = {','.join(classes)!r}: name each of {', '.join(PRIMARIES)} at most once, and one at least"
        )
    _check_momentum(momentum_gev)


def _check_momentum(momentum_gev: tuple[float, float]) -> None:
    low, high = momentum_gev
    if not 0 < low <= high <= _HIGHEST_GEV:
        raise UserError(f"momentum = {low}:{high} GeV/c must satisfy 0 < low <= high <= {_HIGHEST_GEV}")
