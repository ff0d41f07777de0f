"""The first particle of every event as arrays, so that labels of a million events are one numpy expression."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.schema import PARTICLE

__all__ = ["PRIMARY", "Primaries"]

PRIMARY = np.dtype([(name, PARTICLE[name]) for name in ("pdg", "current_type", "px", "py", "pz", "energy_init")])


@dataclass(frozen=True, slots=True)
class Primaries:
    """The first particle of each event; where there is none: pdg 0, current_type -1, momentum and energy NaN.

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
