"""The drift of electrons from the ionization in the liquid to clouds at the anode."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.detectors import Detector
from lartpc_ds.simulation import argon
from lartpc_ds.simulation.ionization import recombination
from lartpc_ds.simulation.rays import Deposits

__all__ = ["Clouds", "drift", "in_volume"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Clouds:
    """M clouds of electrons at the anode.

    A cloud has a number of electrons, a stored tick of arrival and its spread, y and z, and a spread across the drift.
    """

    electrons: Array
    tick: Array
    tick_sigma: Array
    y_cm: Array
    z_cm: Array
    sigma_cm: Array


def in_volume(position: Array, detector: Detector) -> NDArray[np.bool_]:
    """Which points (N, 3) lie in the active volume."""
    low, high = detector.corners_cm
    inside: NDArray[np.bool_] = ((position >= low) & (position <= high)).all(axis=1)
    return inside


def drift(deposits: Deposits, detector: Detector) -> Clouds:
    """Apply recombination, the loss to impurities exp(-t / lifetime), and the diffusion sigma2 = 2 D t.

    Charge outside the volume is lost. The drift is straight and has one speed, so there is no space charge. The
    statistics of the electrons themselves (1 % of a 1 mm step) are left out.
    """
    deposits = deposits[in_volume(deposits.position, detector)]
    x, y, z = deposits.position.T
    drift_us = (x - detector.x_cm[0]) / detector.drift_velocity_cm_per_us
    escaped = recombination(deposits.loss_mev_per_cm, detector.field_kv_per_cm)
    electrons = deposits.energy_mev / argon.PAIR_MEV * escaped * np.exp(-drift_us / 1e3 / detector.electron_lifetime_ms)
    along_cm2 = 2e-6 * detector.longitudinal_diffusion_cm2_per_s * drift_us
    across_cm2 = 2e-6 * detector.transverse_diffusion_cm2_per_s * drift_us
    along_us2 = along_cm2 / detector.drift_velocity_cm_per_us**2
    return Clouds(
        electrons=electrons,
        tick=detector.tick(x, deposits.time_us),
        tick_sigma=np.sqrt(along_us2 + detector.pulse_sigma_us**2) / detector.tick_us,
        y_cm=y,
        z_cm=z,
        sigma_cm=np.sqrt(across_cm2),
    )
