"""Structures of arrays that the simulation hands on: particles about to move, and the energy they left behind.

Rejected: arrays of structures, which would read better for one particle; but a shower has hundreds of them at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["Deposits", "Rays"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rays:
    """N particles of one kind: position (N, 3) cm, unit direction (N, 3), kinetic energy (N,) MeV.

    `time_us` (N,) counts from the trigger; `origin` (N,) is the truth row that their charge belongs to.
    """

    position: Array
    direction: Array
    kinetic_mev: Array
    time_us: Array
    origin: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of particles."""
        return len(self.kinetic_mev)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Rays":
        """The elements that are `chosen`, by mask or by number."""
        return Rays(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence["Rays"]) -> "Rays":
        """All elements of `parts`, in order; no parts give no particles."""
        none = Rays(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0), np.empty(0, np.int64))
        every = [none, *parts]
        return Rays(*(np.concatenate([getattr(part, field.name) for part in every]) for field in fields(Rays)))

    @staticmethod
    def one(position: Array, direction: Array, kinetic_mev: float, time_us: float, origin: int) -> "Rays":
        """A single particle."""
        return Rays(position[None], direction[None], np.array([kinetic_mev]), np.array([time_us]), np.array([origin]))


@dataclass(frozen=True, slots=True)
class Deposits:
    """M pieces of ionization: position (M, 3) cm, energy (M,) MeV, mean loss (M,) MeV/cm for recombination."""

    position: Array
    energy_mev: Array
    loss_mev_per_cm: Array
    time_us: Array
    origin: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of pieces."""
        return len(self.energy_mev)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Deposits":
        """The elements that are `chosen`, by mask or by number."""
        return Deposits(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence["Deposits"]) -> "Deposits":
        """All elements of `parts`, in order; no parts give no ionization."""
        none = Deposits(np.empty((0, 3)), np.empty(0), np.empty(0), np.empty(0), np.empty(0, np.int64))
        every = [none, *parts]
        return Deposits(*(np.concatenate([getattr(part, field.name) for part in every]) for field in fields(Deposits)))
