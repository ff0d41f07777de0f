"""The primary of every event as arrays, so that labels of a million events are one numpy expression.

The primary is the first particle, or the neutrino that interacted wherever it stands: some writers list it last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.schema import PARTICLE

__all__ = ["NEUTRINOS", "PRIMARY", "Primaries", "interacting_neutrinos"]

NEUTRINOS = (12, 14, 16)
"""Codes of the Particle Data Group, without the sign."""
_PROCESSES = (b"", b"primary")

PRIMARY = np.dtype([(name, PARTICLE[name]) for name in ("pdg", "current_type", "px", "py", "pz", "energy_init")])


def interacting_neutrinos(particles: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which rows are neutrinos that interacted: no daughters of a decay, and with a current, charged or neutral."""
    is_neutrino = np.isin(np.abs(particles["pdg"]), NEUTRINOS) & np.isin(particles["current_type"], (0, 1))
    return is_neutrino & np.isin(np.char.lower(particles["process"]), _PROCESSES)


@dataclass(frozen=True, slots=True)
class Primaries:
    """The primary of each event; where there is none: pdg 0, current_type -1, momentum and energy NaN.

    `current_type` is 0 for charged, 1 for neutral current, -1 for a particle that is not a neutrino.
    """

    pdg: NDArray[np.int64]
    current_type: NDArray[np.int64]
    momentum_gev: NDArray[np.float64]
    energy_gev: NDArray[np.float64]
    has_particle: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pdg)

    @classmethod
    def of_rows(cls, rows: NDArray[np.void], has_particle: NDArray[np.bool_]) -> Self:
        """From one row (fields of `PRIMARY` at least) for each True of `has_particle`."""

        def over_events(values: NDArray[Any], absent: float, dtype: type) -> NDArray[Any]:
            result: NDArray[Any] = np.full(len(has_particle), absent, dtype)
            result[has_particle] = values
            return result

        momentum_gev = np.sqrt(rows["px"] ** 2 + rows["py"] ** 2 + rows["pz"] ** 2)
        return cls(
            pdg=over_events(rows["pdg"], 0, np.int64),
            current_type=over_events(rows["current_type"], -1, np.int64),
            momentum_gev=over_events(momentum_gev, np.nan, np.float64),
            energy_gev=over_events(rows["energy_init"], np.nan, np.float64),
            has_particle=has_particle,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The events of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))
