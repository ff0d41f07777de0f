"""Events and files of single particles.

An event depends on (seed, index) alone, from which its own generator is made, so that any number of workers in any
order gives the same file. Rejected: one generator per worker, which would be simpler and would tie events to the
machine.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.detectors import Detector, detector
from lartpc_ds.data.event import Event, EventId
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.data.processes import map_in_processes
from lartpc_ds.errors import UserError
from lartpc_ds.simulation.drift import drift
from lartpc_ds.simulation.kinematics import in_cone
from lartpc_ds.simulation.particles import PRIMARIES, Flight, primary_pdg
from lartpc_ds.simulation.response import plane_pixels
from lartpc_ds.simulation.transport import transport

__all__ = ["ANYWHERE", "Aim", "SimulationSummary", "simulate_event", "simulate_file"]

_HIGHEST_GEV = 20.0
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class Aim:
    """The volume that primaries start in, uniformly, and the cone that they fly into, uniformly in solid angle.

    `vertex` is (low, high) of x, y and z as shares of the active volume; `angle_deg` is the largest angle to the beam
    (z).
    """

    vertex: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
    angle_deg: float = 180.0

    def draw(self, detector: Detector, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The position in cm and the direction of one primary, (3,) each."""
        low, high = detector.corners_cm
        direction = in_cone(np.array([0.0, 0.0, 1.0]), self.angle_deg, rng)
        return low + (high - low) * rng.uniform(*np.array(self.vertex).T), direction


ANYWHERE = Aim()
"""Primaries start in the whole active volume and fly in all directions alike."""


@dataclass(frozen=True, slots=True)
class SimulationSummary:
    """What a call of simulate_file has written, and how fast."""

    events: int
    seconds: float
    events_per_second: float


def simulate_event(
    detector: Detector, species: str, momentum_gev: float, rng: np.random.Generator, id: EventId, aim: Aim = ANYWHERE
) -> Event:
    """An event of one particle of the class `species`, which by default may start anywhere and fly in any direction.

    Raises:
        UserError: the class is not simulated, or the momentum is out of range.
    """
    _check_momentum((momentum_gev, momentum_gev))
    pdg = primary_pdg(species, rng)
    position, direction = aim.draw(detector, rng)
    primary = Flight(pdg, direction * momentum_gev * 1e3, position, 0.0)
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
    aim: Aim = ANYWHERE,
    on_event: Callable[[int], None] | None = None,
) -> SimulationSummary:
    """Write `num_events` events to the larcv3 file `out`; the classes take turns.

    `on_event` gets the number of events written so far. An event has run 1, `seed` as its subrun, and its index as its
    event number.

    Raises:
        UserError: a detector or class is unknown, a number is out of range, or `out` exists.
    """
    make = partial(_indexed_event, out.name, detector(detector_name), tuple(classes), momentum_gev, aim, seed)
    _check(num_events, classes, momentum_gev, seed, workers)
    started = time.perf_counter()
    with Larcv3Writer(out) as writer:
        for written, event in enumerate(map_in_processes(make, range(num_events), workers, _CHUNK), start=1):
            writer.write(event)
            if on_event is not None:
                on_event(written)
    seconds = time.perf_counter() - started
    return SimulationSummary(num_events, seconds, num_events / seconds)


def _indexed_event(
    file: str,
    detector: Detector,
    classes: tuple[str, ...],
    momentum_range_gev: tuple[float, float],
    aim: Aim,
    seed: int,
    index: int,
) -> Event:
    """Event `index` of a file, which depends on nothing but these arguments."""
    rng = np.random.default_rng([seed, index])
    species = classes[index % len(classes)]
    momentum_gev = float(rng.uniform(*momentum_range_gev))
    return simulate_event(detector, species, momentum_gev, rng, EventId(file, index, 1, seed, index), aim)


def _check(num_events: int, classes: Sequence[str], momentum_gev: tuple[float, float], seed: int, workers: int) -> None:
    """Check all of the user's numbers before anything is made."""
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
