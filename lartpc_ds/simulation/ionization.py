"""Energy loss, range and recombination of charged particles in liquid argon.

Mean loss and range come from tables that are made once per species, so that a whole track takes two interpolations and
no loop. The mean loss is Bethe's full loss; tracks.py splits it into a smooth part and single collisions.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.simulation import argon

__all__ = [
    "StoppingTable",
    "bethe",
    "density_effect",
    "moller_bethe",
    "recombination",
    "soft_radiation",
    "stopping_table",
]

Array = NDArray[np.float64]

SOFT_PHOTON_MEV = 1.0
"""Bremsstrahlung below this energy counts as a smooth loss that leaves the picture."""
_SLOWEST_BETA = 0.05
"""Below this speed Bethe's formula fails (PDG 34); the loss stays constant over the last fraction of a millimetre."""
_ENERGY_GRID_MEV = np.geomspace(1e-2, 3e4, 1500)


def density_effect(beta_gamma: Array) -> Array:
    """The density-effect correction delta: Sternheimer, Berger, Seltzer, At. Data Nucl. Data Tables 30, 261 (1984)."""
    x = np.log10(beta_gamma)
    rise = 2 * np.log(10) * x - 5.2146
    bent = rise + 0.1956 * np.maximum(3.0 - x, 0.0) ** 3
    return np.where(x < 0.2, 0.0, np.where(x < 3.0, bent, rise))


def bethe(kinetic_mev: Array, mass_mev: float) -> Array:
    """The mean loss in MeV/cm of a singly charged heavy particle: PDG 34."""
    gamma = np.maximum(1 + kinetic_mev / mass_mev, 1 / np.sqrt(1 - _SLOWEST_BETA**2))
    beta_gamma2 = gamma**2 - 1
    beta2 = beta_gamma2 / gamma**2
    largest = largest_transfer(gamma, mass_mev)
    log = 0.5 * np.log(2 * argon.ELECTRON_MASS * beta_gamma2 * largest / argon.MEAN_EXCITATION_MEV**2)
    bracket = log - beta2 - density_effect(np.sqrt(beta_gamma2)) / 2
    loss: Array = _electron_density() / beta2 * bracket
    return loss


def moller_bethe(kinetic_mev: Array) -> Array:
    """The mean collision loss in MeV/cm of an electron; a positron's differs by a few per cent: PDG 34."""
    gamma = 1 + kinetic_mev / argon.ELECTRON_MASS
    beta_gamma2 = gamma**2 - 1
    beta2 = beta_gamma2 / gamma**2
    log = np.log(beta_gamma2 * argon.ELECTRON_MASS * kinetic_mev / 2 / argon.MEAN_EXCITATION_MEV**2)
    bracket = (
        log
        + (1 - beta2)
        - (2 * gamma - 1) / gamma**2 * np.log(2)
        + ((gamma - 1) / gamma) ** 2 / 8
        - density_effect(np.sqrt(beta_gamma2))
    )
    loss: Array = _electron_density() / 2 / beta2 * bracket
    return loss


def soft_radiation(kinetic_mev: Array) -> Array:
    """The loss in MeV/cm to bremsstrahlung below SOFT_PHOTON_MEV: PDG 34 times k, integrated."""
    y = np.minimum(SOFT_PHOTON_MEV / kinetic_mev, 1.0)
    return kinetic_mev / argon.RADIATION_LENGTH_CM * (4 / 3 * y - 2 / 3 * y**2 + y**3 / 3)


def largest_transfer(gamma: Array, mass_mev: float) -> Array:
    """The largest energy in MeV that a heavy particle can give to one electron: PDG 34."""
    ratio = argon.ELECTRON_MASS / mass_mev
    largest: Array = 2 * argon.ELECTRON_MASS * (gamma**2 - 1) / (1 + 2 * gamma * ratio + ratio**2)
    return largest


def collision_scale(beta2: Array, length_cm: Array) -> Array:
    """Landau's xi in MeV: the number of collisions above an energy w is xi / w (PDG 34)."""
    return _electron_density() / 2 / beta2 * length_cm


def _electron_density() -> float:
    """The factor K Z/A rho of Bethe's formula in MeV/cm."""
    return argon.BETHE_K * argon.ATOMIC_NUMBER / argon.ATOMIC_MASS * argon.DENSITY


def recombination(loss_mev_per_cm: Array, field_kv_per_cm: float) -> Array:
    """The share of the electrons that escape: modified box model, ArgoNeuT, JINST 8 P08005 (arXiv:1306.1712)."""
    beta = 0.212 / (argon.DENSITY * field_kv_per_cm) * loss_mev_per_cm
    # the model exceeds its own limit below about 0.5 MeV/cm, where nothing was measured
    return np.minimum(np.log(0.93 + beta) / np.maximum(beta, 1e-6), 1.0)


@dataclass(frozen=True)
class StoppingTable:
    """Loss (ionization alone) and range (all smooth losses) against kinetic energy, for one species."""

    mass_mev: float
    kinetic_mev: Array
    ionization_mev_per_cm: Array
    loss_mev_per_cm: Array
    range_cm: Array

    def ionization(self, kinetic_mev: Array) -> Array:
        """The loss to ionization in MeV/cm."""
        return np.interp(kinetic_mev, self.kinetic_mev, self.ionization_mev_per_cm)

    def loss(self, kinetic_mev: Array) -> Array:
        """The whole loss in MeV/cm: ionization and soft radiation."""
        return np.interp(kinetic_mev, self.kinetic_mev, self.loss_mev_per_cm)

    def range(self, kinetic_mev: Array) -> Array:
        """The path in cm until the particle stops."""
        return np.interp(kinetic_mev, self.kinetic_mev, self.range_cm)

    def kinetic(self, range_cm: Array) -> Array:
        """The kinetic energy in MeV of a particle that has this much path left."""
        return np.interp(range_cm, self.range_cm, self.kinetic_mev, left=0.0)


@lru_cache
def stopping_table(mass_mev: float) -> StoppingTable:
    """The table of a species; the electron's mass selects the electron's formulae."""
    kinetic = _ENERGY_GRID_MEV
    electron = mass_mev == argon.ELECTRON_MASS
    ionization = moller_bethe(kinetic) if electron else bethe(kinetic, mass_mev)
    loss = ionization + soft_radiation(kinetic) if electron else ionization
    steps = np.diff(kinetic) * (1 / loss[1:] + 1 / loss[:-1]) / 2
    first = kinetic[0] / loss[0]
    # the leading zero lets kinetic() fall to nothing at the end of the path
    return StoppingTable(
        mass_mev,
        np.concatenate([[0.0], kinetic]),
        np.concatenate([ionization[:1], ionization]),
        np.concatenate([loss[:1], loss]),
        np.concatenate([[0.0, first], first + np.cumsum(steps)]),
    )
