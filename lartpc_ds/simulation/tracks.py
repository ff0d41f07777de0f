"""Charged particles through argon: many tracks at once, each cut into steps, with no loop over steps.

The mean energy along a path is the range table read backwards. Fluctuations follow the physics: collisions above
COLLISION_MEV are drawn one by one from their 1/w2 spectrum (those above DELTA_MEV become electrons of their own), and
the rest is smooth with a small Gaussian spread. So thin steps get Landau's tail, thick steps get Vavilov's shape, and
the mean stays Bethe's. The losses and the length of a track that stops are scaled together, so that it loses exactly
its own energy: to first order that is range straggling, and dE/dx does not change. Rejected: a fitted Landau curve.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.simulation import argon
from lartpc_ds.simulation.ionization import StoppingTable, collision_scale, largest_transfer
from lartpc_ds.simulation.kinematics import across, turned
from lartpc_ds.simulation.rays import Deposits, Rays

__all__ = ["STEP_CM", "Walk", "walk"]

Array = NDArray[np.float64]

STEP_CM = 0.15
"""The length of a step: half a wire pitch."""
COLLISION_MEV = 0.05
DELTA_MEV = 2.0
"""The energy from which an electron is followed: at 2 MeV it runs 1 cm, far enough to leave its track."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a set of tracks leaves: ionization, the tracks at their end, and knocked-on electrons."""

    deposits: Deposits
    ends: Rays
    deltas: Rays


def walk(rays: Rays, table: StoppingTable, path_cm: Array, rng: np.random.Generator) -> Walk:
    """Move each ray along `path_cm` (N,), which is at most its range."""
    full_range = table.range(rays.kinetic_mev)
    counts = np.maximum(np.ceil(path_cm / STEP_CM), 1).astype(np.int64)
    first = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(rays)), counts)
    index = np.arange(len(owner)) - first[owner]
    length = (path_cm / counts)[owner]
    left = full_range[owner] - index * length
    before, after = table.kinetic(left), table.kinetic(np.maximum(left - length, 0.0))
    middle = (before + after) / 2

    ionization = table.ionization(middle)
    smooth, hit_step, hit_mev = _losses(table.mass_mev, middle, (before - after), ionization, length, table, rng)
    small = hit_mev < DELTA_MEV
    energy = smooth + np.bincount(hit_step[small], hit_mev[small], len(owner))
    step, delta_mev = hit_step[~small], hit_mev[~small]

    stops = path_cm >= full_range * (1 - 1e-9)
    spent = np.bincount(owner, energy, len(rays)) + np.bincount(owner[step], delta_mev, len(rays))
    scale = np.where(stops, rays.kinetic_mev / np.maximum(spent, 1e-9), 1.0)
    length, energy, delta_mev = length * scale[owner], energy * scale[owner], delta_mev * scale[owner][step]

    directions, end_direction = _scattered(rays.direction, table.mass_mev, middle, length, owner, first, counts, rng)
    moved = np.cumsum(directions * length[:, None], axis=0)
    moved -= (moved[first] - directions[first] * length[first, None])[owner]
    ends_at = rays.position[owner] + moved
    last = first + counts - 1
    deposits = Deposits(
        ends_at - directions * length[:, None] / 2, energy, ionization, rays.time_us[owner], rays.origin[owner]
    )
    ends = Rays(ends_at[last], end_direction, np.where(stops, 0.0, after[last]), rays.time_us, rays.origin)
    cosines = _delta_cosine(delta_mev, middle[step], table.mass_mev)
    deltas = Rays(
        deposits.position[step],
        turned(directions[step], cosines, rng),
        delta_mev,
        deposits.time_us[step],
        deposits.origin[step],
    )
    return Walk(deposits, ends, deltas)


def _losses(
    mass_mev: float,
    kinetic: Array,
    mean_loss: Array,
    ionization: Array,
    length: Array,
    table: StoppingTable,
    rng: np.random.Generator,
) -> tuple[Array, NDArray[np.int64], Array]:
    """The smooth ionization of each step, and the steps and energies of single collisions."""
    gamma = 1 + kinetic / mass_mev
    beta2 = 1 - 1 / gamma**2
    xi = collision_scale(beta2, length)
    electron = mass_mev == argon.ELECTRON_MASS
    # two electrons cannot be told apart, so the faster one is the track
    largest = np.maximum(kinetic / 2 if electron else largest_transfer(gamma, mass_mev), COLLISION_MEV)
    number = rng.poisson(xi * (1 / COLLISION_MEV - 1 / largest))
    step = np.repeat(np.arange(len(kinetic)), number)
    hit = COLLISION_MEV / (1 - rng.random(len(step)) * (1 - COLLISION_MEV / largest[step]))

    deposited = mean_loss * ionization / table.loss(kinetic) if electron else mean_loss
    smooth = deposited - xi * np.log(largest / COLLISION_MEV)
    spread = np.sqrt(xi * np.minimum(COLLISION_MEV, largest) * (1 - beta2 / 2))
    return np.maximum(smooth + spread * rng.standard_normal(len(kinetic)), 0.0), step, hit


def _scattered(
    start: Array,
    mass_mev: float,
    kinetic: Array,
    length: Array,
    owner: NDArray[np.int64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """The direction on each step (M, 3) and after the last step (N, 3): Highland's formula, PDG 34.

    The logarithmic term has its value for one radiation length, because it does not add up over steps.
    """
    beta_p = kinetic * (kinetic + 2 * mass_mev) / (kinetic + mass_mev)
    width = 13.6 / np.maximum(beta_p, 1e-3) * np.sqrt(length / argon.RADIATION_LENGTH_CM)
    kicks = rng.standard_normal((len(owner), 2)) * np.minimum(width, 1.0)[:, None]
    after = np.cumsum(kicks, axis=0)
    after -= (after[first] - kicks[first])[owner]
    on_step = after - kicks / 2
    on_axes = across(start)
    last = first + counts - 1
    return _bent(start[owner], on_axes, on_step, owner), _bent(start, on_axes, after[last], np.arange(len(start)))


def _bent(start: Array, axes: tuple[Array, Array], angles: Array, owner: NDArray[np.int64]) -> Array:
    """The directions `start` (M, 3), carried along the great circle of two plane angles (M, 2)."""
    size = np.sqrt((angles**2).sum(axis=1))
    sine = np.sinc(size / np.pi)[:, None]
    bent: Array = start * np.cos(size)[:, None] + sine * (
        axes[0][owner] * angles[:, :1] + axes[1][owner] * angles[:, 1:]
    )
    return bent


def _delta_cosine(delta_mev: Array, kinetic: Array, mass_mev: float) -> Array:
    """The cosine of a knocked-on electron's angle, from energy and momentum conservation (PDG 34)."""
    energy = kinetic + mass_mev
    momentum = np.sqrt(kinetic * (kinetic + 2 * mass_mev))
    electron = np.sqrt(delta_mev * (delta_mev + 2 * argon.ELECTRON_MASS))
    cosine: Array = np.minimum(delta_mev * (energy + argon.ELECTRON_MASS) / (momentum * electron), 1.0)
    return cosine
