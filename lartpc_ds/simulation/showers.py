"""Electromagnetic showers, one generation of particles at a time.

Electrons lose energy, scatter and radiate; photons make pairs or scatter. All particles of a generation move together
as arrays, and the loop is over generations (some 40 for 1 GeV). Rejected: a longitudinal profile with a radial spread,
which would be faster. But a shower of 0.2 to 1 GeV is a few tracks and not a profile, and its gaps, its branches and
its start as a single particle are what tells electrons from photons.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.simulation import argon
from lartpc_ds.simulation.ionization import stopping_table
from lartpc_ds.simulation.kinematics import turned
from lartpc_ds.simulation.photons import brem_hazard, brem_photon, compton_share, pair_share, photon_table
from lartpc_ds.simulation.rays import Deposits, Rays
from lartpc_ds.simulation.tracks import walk

__all__ = ["cascade"]

Array = NDArray[np.float64]
Inside = Callable[[Array], NDArray[np.bool_]]

LEAST_ELECTRON_MEV = 0.1
LEAST_PHOTON_MEV = 0.3
"""A 0.3 MeV electron leaves less than the threshold on a wire."""


def cascade(electrons: Rays, photons: Rays, inside: Inside, rng: np.random.Generator) -> Deposits:
    """The ionization that `electrons` and `photons`, and all particles that they make, leave.

    `inside(position)` says which points (N, 3) are in the volume. Particles that start outside are not followed,
    because almost none of their charge would come back.
    """
    deposits: list[Deposits] = []
    while len(electrons) or len(photons):
        made, photons = _photons_interact(photons, inside, rng)
        electrons = Rays.joined([electrons, made])
        electrons = electrons[(electrons.kinetic_mev > LEAST_ELECTRON_MEV) & inside(electrons.position)]
        if len(electrons):
            left, electrons, radiated = _electrons_move(electrons, rng)
            deposits.append(left)
            photons = Rays.joined([photons, radiated])
    return Deposits.joined(deposits)


def _electrons_move(electrons: Rays, rng: np.random.Generator) -> tuple[Deposits, Rays, Rays]:
    """Move each electron to its next photon, or to its end: ionization, electrons and photons that go on."""
    table = stopping_table(argon.ELECTRON_MASS)
    hazard = brem_hazard()
    target = np.interp(electrons.kinetic_mev, table.kinetic_mev, hazard) + np.log1p(-rng.random(len(electrons)))
    radiates = target > 0
    at = np.where(radiates, np.interp(target, hazard, table.kinetic_mev), 0.0)
    full_range = table.range(electrons.kinetic_mev)
    walked = walk(electrons, table, full_range - table.range(at), rng)
    ends = walked.ends[radiates]
    energy = brem_photon(ends.kinetic_mev, rng)
    slower = replace(ends, kinetic_mev=ends.kinetic_mev - energy)
    return walked.deposits, Rays.joined([slower, walked.deltas]), replace(ends, kinetic_mev=energy)


def _photons_interact(photons: Rays, inside: Inside, rng: np.random.Generator) -> tuple[Rays, Rays]:
    """Move each photon to its next interaction: electrons made there, and photons that go on."""
    photons = photons[photons.kinetic_mev > LEAST_PHOTON_MEV]
    table = photon_table()
    attenuation = np.interp(photons.kinetic_mev, table.energy_mev, table.attenuation_per_cm)
    free_cm = -np.log1p(-rng.random(len(photons))) / attenuation
    position = photons.position + photons.direction * free_cm[:, None]
    photons = replace(photons, position=position)[inside(position)]
    pair_fraction = np.interp(photons.kinetic_mev, table.energy_mev, table.pair_fraction)
    pairs = rng.random(len(photons)) < pair_fraction
    scattered_electrons, scattered_photons = _compton(photons[~pairs], rng)
    return Rays.joined([scattered_electrons, _pairs(photons[pairs], rng)]), scattered_photons


def _pairs(photons: Rays, rng: np.random.Generator) -> Rays:
    """The electron and the positron, both along the photon: their opening is far below the scattering of a step."""
    share = pair_share(photons.kinetic_mev, rng)
    kinetic = photons.kinetic_mev - 2 * argon.ELECTRON_MASS
    return Rays.joined([replace(photons, kinetic_mev=kinetic * part) for part in (share, 1 - share)])


def _compton(photons: Rays, rng: np.random.Generator) -> tuple[Rays, Rays]:
    """The struck electron and the photon that goes on; they balance transverse momentum."""
    share, cosine = compton_share(photons.kinetic_mev, rng)
    after = photons.kinetic_mev * share
    direction = turned(photons.direction, cosine, rng)
    recoil = photons.direction * photons.kinetic_mev[:, None] - direction * after[:, None]
    size = np.maximum(np.sqrt((recoil**2).sum(axis=1, keepdims=True)), 1e-12)
    electrons = replace(photons, direction=recoil / size, kinetic_mev=photons.kinetic_mev - after)
    return electrons, replace(photons, direction=direction, kinetic_mev=after)
