"""How photons interact and electrons radiate in argon: cross sections as tables, and the sharing of energy.

Spectra are drawn by rejection over whole arrays, which is exact. Rejected: tables of two variables, which one would
have to make and to trust.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.simulation import argon
from lartpc_ds.simulation.ionization import SOFT_PHOTON_MEV, stopping_table

__all__ = ["PhotonTable", "brem_hazard", "brem_photon", "compton_share", "pair_share", "photon_table"]

Array = NDArray[np.float64]

_ELECTRON_RADIUS_CM = 2.8179403e-13
_ATOMS_PER_CM3 = 6.02214076e23 * argon.DENSITY / argon.ATOMIC_MASS
_ENERGY_GRID_MEV = np.geomspace(0.1, 3e4, 400)


@dataclass(frozen=True, slots=True)
class PhotonTable:
    """Attenuation in 1/cm, and the share of pair production in it, against photon energy."""

    energy_mev: Array
    attenuation_per_cm: Array
    pair_fraction: Array


@lru_cache
def photon_table() -> PhotonTable:
    """The table of pair production and Compton scattering.

    The photoelectric effect is left out, because it matters only below the energies that we follow.
    """
    pair, compton = pair_attenuation(_ENERGY_GRID_MEV), compton_attenuation(_ENERGY_GRID_MEV)
    return PhotonTable(_ENERGY_GRID_MEV, pair + compton, pair / (pair + compton))


def compton_attenuation(energy_mev: Array) -> Array:
    """Attenuation in 1/cm: Klein and Nishina's total cross section on all electrons (Z. Phys. 52, 853 (1929))."""
    k = energy_mev / argon.ELECTRON_MASS
    log = np.log(1 + 2 * k)
    area = 2 * np.pi * _ELECTRON_RADIUS_CM**2
    cross = area * (
        (1 + k) / k**2 * (2 * (1 + k) / (1 + 2 * k) - log / k) + log / 2 / k - (1 + 3 * k) / (1 + 2 * k) ** 2
    )
    return _ATOMS_PER_CM3 * argon.ATOMIC_NUMBER * cross


def pair_attenuation(energy_mev: Array) -> Array:
    """Attenuation in 1/cm by pairs: Bethe and Heitler with screening (Butcher, Messel, Nucl. Phys. 20, 15 (1960)).

    Only the shape in energy comes from the formula. Its limit at high energy, 7/9 per radiation length (PDG 34), fixes
    the scale, so that the radiation length stays PDG's.
    """
    energies = np.append(energy_mev, 1e6)
    shape = np.zeros_like(energies)
    above = energies > 2 * argon.ELECTRON_MASS * 1.001
    lowest = argon.ELECTRON_MASS / energies[above, None]
    share = lowest + (1 - 2 * lowest) * (np.arange(400) + 0.5) / 400
    screening = 136 / argon.ATOMIC_NUMBER ** (1 / 3) * lowest / (share * (1 - share))
    strong = 21.12 - 4.184 * np.log(screening + 0.952)
    first = np.where(screening <= 1, 20.867 - 3.242 * screening + 0.625 * screening**2, strong)
    second = np.where(screening <= 1, 20.209 - 1.930 * screening - 0.086 * screening**2, strong)
    nucleus = 8 / 3 * np.log(argon.ATOMIC_NUMBER)
    density = (share**2 + (1 - share) ** 2) * np.maximum(first - nucleus / 2, 0.0)
    density += 2 / 3 * share * (1 - share) * np.maximum(second - nucleus / 2, 0.0)
    shape[above] = density.mean(axis=1) * (1 - 2 * lowest[:, 0])
    attenuation: Array = shape[:-1] / shape[-1] * 7 / 9 / argon.RADIATION_LENGTH_CM
    return attenuation


@lru_cache
def brem_hazard() -> Array:
    """The number of photons above SOFT_PHOTON_MEV that an electron radiates until it has only that energy.

    The entries are on the energies of the electron's stopping table: two of them differ by the mean number of photons
    between them. They are PDG 34 (complete screening) over the electron's loss.
    """
    table = stopping_table(argon.ELECTRON_MASS)
    kinetic, loss = table.kinetic_mev[1:], table.loss_mev_per_cm[1:]
    y = np.minimum(SOFT_PHOTON_MEV / kinetic, 1.0)
    per_cm = (4 / 3 * -np.log(y) - 4 / 3 * (1 - y) + (1 - y**2) / 2) / argon.RADIATION_LENGTH_CM
    per_mev = per_cm / loss
    return np.concatenate([[0.0, 0.0], np.cumsum(np.diff(kinetic) * (per_mev[1:] + per_mev[:-1]) / 2)])


def brem_photon(kinetic_mev: Array, rng: np.random.Generator) -> Array:
    """Photon energies (N,) in MeV above SOFT_PHOTON_MEV: PDG 34, 1/k (4/3 - 4/3 y + y2)."""

    def propose(kinetic: Array) -> tuple[Array, Array]:
        y = (SOFT_PHOTON_MEV / kinetic) ** rng.random(len(kinetic))
        return y * kinetic, 1 - y + 0.75 * y**2

    return _rejected(kinetic_mev, propose, rng)


def pair_share(energy_mev: Array, rng: np.random.Generator) -> Array:
    """The share (N,) of the kinetic energy that the electron of a pair gets: PDG 34, 1 - 4/3 x (1 - x)."""

    def propose(energy: Array) -> tuple[Array, Array]:
        x = rng.random(len(energy))
        return x, 1 - 4 / 3 * x * (1 - x)

    return _rejected(energy_mev, propose, rng)


def compton_share(energy_mev: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The share of its energy that a scattered photon keeps, and the cosine of its angle: Klein-Nishina.

    Drawn after Butcher and Messel: e from 1/e or e, accepted with 1 - e sin2 / (1 + e2).
    """

    def propose(energy: Array) -> tuple[Array, Array]:
        lowest = 1 / (1 + 2 * energy / argon.ELECTRON_MASS)
        inverse, linear = -np.log(lowest), (1 - lowest**2) / 2
        u = rng.random(len(energy))
        share = np.where(
            rng.random(len(energy)) < inverse / (inverse + linear),
            lowest**u,
            np.sqrt(lowest**2 + (1 - lowest**2) * u),
        )
        cosine = _compton_cosine(energy, share)
        return share, 1 - share * (1 - cosine**2) / (1 + share**2)

    share = _rejected(energy_mev, propose, rng)
    return share, _compton_cosine(energy_mev, share)


def _compton_cosine(energy_mev: Array, share: Array) -> Array:
    return np.clip(1 - argon.ELECTRON_MASS / energy_mev * (1 / share - 1), -1.0, 1.0)


def _rejected(energy_mev: Array, propose: Callable[[Array], tuple[Array, Array]], rng: np.random.Generator) -> Array:
    """One accepted value for each energy."""
    accepted = np.empty(len(energy_mev))
    waiting = np.arange(len(energy_mev))
    while len(waiting):
        value, chance = propose(energy_mev[waiting])
        taken = rng.random(len(waiting)) < chance
        accepted[waiting[taken]] = value[taken]
        waiting = waiting[~taken]
    return accepted
