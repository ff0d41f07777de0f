"""The transport of a particle and all its descendants through the liquid: from a Flight to Deposits and Truth.

Muons and hadrons are few and move one by one. The electrons and photons that they make are kept, and one cascade at the
end moves them all together.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.detectors import Detector
from lartpc_ds.simulation.drift import in_volume
from lartpc_ds.simulation.ionization import StoppingTable, stopping_table
from lartpc_ds.simulation.particles import SPECIES, Flight, Truth
from lartpc_ds.simulation.processes import Products, at_rest, decay, interact, interaction_per_cm
from lartpc_ds.simulation.rays import Deposits, Rays
from lartpc_ds.simulation.showers import cascade
from lartpc_ds.simulation.tracks import walk

__all__ = ["transport"]

Array = NDArray[np.float64]

LEAST_TRACK_MEV = 0.5
_HAZARD_POINTS = 200


def transport(primary: Flight, detector: Detector, rng: np.random.Generator) -> tuple[Deposits, Truth]:
    """All ionization of `primary` and of the particles that it makes, and the truth about these particles."""
    truth = Truth()
    deposits: list[Deposits] = []
    electrons: list[Rays] = []
    photons: list[Rays] = []
    waiting = [primary]
    while waiting:
        flight = waiting.pop(0)
        row = truth.add(flight)
        if abs(flight.pdg) in (11, 22):
            kind = photons if flight.pdg == 22 else electrons
            kind.append(Rays.one(flight.position, flight.direction, flight.kinetic_mev, flight.time_us, row))
        elif flight.pdg == 111:
            truth.end(row, flight.position, flight.time_us, 0.0)
            waiting += _born(decay(111, flight.momentum, rng), flight.position, flight.time_us, row, "Decay")
        else:
            left, deltas, children = _track(flight, row, truth, detector, rng)
            deposits.append(left)
            electrons.append(deltas)
            waiting += children
    inside = partial(in_volume, detector=detector)
    deposits.append(cascade(Rays.joined(electrons), Rays.joined(photons), inside, rng))
    every = Deposits.joined(deposits)
    return every[inside(every.position)], truth


def _track(
    flight: Flight, row: int, truth: Truth, detector: Detector, rng: np.random.Generator
) -> tuple[Deposits, Rays, list[Flight]]:
    """Move one muon or hadron to its end: ionization, knocked-on electrons, and the particles that start there."""
    table = stopping_table(flight.mass_mev)
    kinetic = flight.kinetic_mev
    if kinetic < LEAST_TRACK_MEV or not in_volume(flight.position[None], detector)[0]:
        truth.end(row, flight.position, flight.time_us, 0.0)
        at_end = flight.position, np.zeros(3), flight.time_us
        children = _fate("stop", flight, row, at_end, rng) if kinetic < LEAST_TRACK_MEV else []
        return Deposits.joined([]), Rays.joined([]), children
    path, fate = _path_and_fate(flight.pdg, kinetic, _way_out(flight, detector), table, rng)
    ray = Rays.one(flight.position, flight.direction, kinetic, flight.time_us, row)
    walked = walk(ray, table, np.array([path]), rng)
    position, after = walked.ends.position[0], float(walked.ends.kinetic_mev[0])
    truth.end(row, position, flight.time_us, path)
    momentum = walked.ends.direction[0] * np.sqrt(after * (after + 2 * flight.mass_mev))
    children = _fate(fate, flight, row, (position, momentum, flight.time_us), rng)
    return walked.deposits, walked.deltas, children


def _path_and_fate(
    pdg: int, kinetic: float, way_out_cm: float, table: StoppingTable, rng: np.random.Generator
) -> tuple[float, str]:
    """The path in cm, and what ends it: "stop", "interact", "decay" or "leave"."""
    full_range = float(table.range(np.array([kinetic]))[0])
    path = min(full_range, way_out_cm)
    along = np.linspace(0.0, path, _HAZARD_POINTS)
    energy = table.kinetic(full_range - along)
    nuclear = interaction_per_cm(pdg, energy)
    species = SPECIES[abs(pdg)]
    decaying = species.mass_mev / np.sqrt(np.maximum(energy * (energy + 2 * species.mass_mev), 1.0)) / species.ctau_cm
    hazard = nuclear + decaying
    grown = np.concatenate([[0.0], np.cumsum((hazard[1:] + hazard[:-1]) / 2) * along[1]])
    drawn = rng.exponential()
    if drawn < grown[-1]:
        at = float(np.interp(drawn, grown, along))
        share = np.interp(at, along, nuclear) / np.interp(at, along, hazard)
        return at, "interact" if rng.random() < share else "decay"
    return path, "stop" if full_range <= way_out_cm else "leave"


def _fate(
    fate: str, flight: Flight, row: int, at_end: tuple[Array, Array, float], rng: np.random.Generator
) -> list[Flight]:
    """The particles that start where a track ended."""
    position, momentum, time_us = at_end
    if fate == "stop":
        process, delay, products = at_rest(flight.pdg, rng)
        return _born(products, position, time_us + delay, row, process)
    if fate == "decay":
        return _born(decay(flight.pdg, momentum, rng), position, time_us, row, "Decay")
    if fate == "interact":
        process, products = interact(flight.pdg, momentum, rng)
        return _born(products, position, time_us, row, process)
    return []


def _born(products: Products, position: Array, time_us: float, parent: int, process: str) -> list[Flight]:
    return [Flight(pdg, momentum, position, time_us, parent, process) for pdg, momentum in products]


def _way_out(flight: Flight, detector: Detector) -> float:
    """The path in cm after which a track has left the volume: straight ahead, and a little more because tracks bend."""
    low, high = detector.corners_cm
    direction = np.where(np.abs(flight.direction) < 1e-9, 1e-9, flight.direction)
    walls = np.where(direction > 0, high, low)
    return float(((walls - flight.position) / direction).min()) * 1.15 + 3.0
