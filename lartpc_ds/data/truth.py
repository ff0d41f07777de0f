"""The primary of every event as arrays, so that labels of a million events are one numpy expression.

The primary is the neutrino that interacted, wherever it stands, since some writers list it last; else it is the first
particle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.schema import PARTICLE

__all__ = ["NEUTRINOS", "PRIMARY", "Primaries", "interacting_neutrinos"]

NEUTRINOS = (12, 14, 16)
"""The codes of neutrinos by the Particle Data Group, without the sign."""
_PROCESSES = (b"", b"primary")

PRIMARY = np.dtype([(name, PARTICLE[name]) for name in ("pdg", "current_type", "px", "py", "pz", "energy_init")])


def interacting_neutrinos(particles: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which rows are neutrinos that interacted: they have a current, charged or neutral, and come from no decay."""
    is_neutrino = np.isin(np.abs(particles["pdg"]), NEUTRINOS) & np.isin(particles["current_type"], (0, 1))
    return is_neutrino & np.isin(np.char.lower(particles["process"]), _PROCESSES)


@dataclass(frozen=True, slots=True)
class Primaries:
    """The primary of each event; without a primary, pdg is 0, current_type -1, and momentum and energy are NaN.

    `current_type` is 0 for a charged current, 1 for a neutral current, and -1 for a particle that is not a neutrino.
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
        """Primaries from one row, with at least the fields of `PRIMARY`, for each True of `has_particle`."""

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
