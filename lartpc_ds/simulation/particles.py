"""The particles that the simulation follows, and the truth rows that it writes about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.schema import PARTICLE
from lartpc_ds.errors import UserError
from lartpc_ds.simulation import argon
from lartpc_ds.simulation.rays import Deposits

__all__ = ["PRIMARIES", "SPECIES", "Flight", "Species", "Truth", "primary_pdg"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Species:
    """Mass in MeV and mean lifetime as c tau in cm (infinite where it plays no part): PDG particle listings."""

    mass_mev: float
    ctau_cm: float = np.inf


SPECIES: Mapping[int, Species] = MappingProxyType(
    {
        11: Species(argon.ELECTRON_MASS),
        13: Species(105.6583755, 65863.8),
        22: Species(0.0),
        111: Species(134.9768, 2.55e-6),
        211: Species(139.57039, 780.45),
        321: Species(493.677, 371.1),
        2212: Species(938.27209),
    }
)
"""All particles that are followed, by |pdg|."""

PRIMARIES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "electron": (11, -11),
        "gamma": (22,),
        "muon": (13, -13),
        "pion": (211, -211),
        "kaon": (321,),
        "proton": (2212,),
    }
)
"""The pdg codes of each class: both charges, with equal chance, where both are followed."""


def primary_pdg(species: str, rng: np.random.Generator) -> int:
    """A pdg code of the class `species`; raises UserError if the class is not one of PRIMARIES."""
    if species not in PRIMARIES:
        raise UserError(f"class {species!r} cannot be simulated: choose from {', '.join(PRIMARIES)}")
    codes = PRIMARIES[species]
    return codes[int(rng.integers(len(codes)))]


@dataclass(frozen=True, slots=True)
class Flight:
    """A particle that starts: momentum (3,) MeV/c, position (3,) cm, truth row of its parent (-1 for the primary)."""

    pdg: int
    momentum: Array
    position: Array
    time_us: float
    parent: int = -1
    process: str = "primary"

    @property
    def mass_mev(self) -> float:
        """Rest mass."""
        return SPECIES[abs(self.pdg)].mass_mev

    @property
    def energy_mev(self) -> float:
        """Total energy."""
        return float(np.sqrt(self.momentum @ self.momentum + self.mass_mev**2))

    @property
    def kinetic_mev(self) -> float:
        """Kinetic energy."""
        return self.energy_mev - self.mass_mev

    @property
    def direction(self) -> Array:
        """Unit vector."""
        size = np.sqrt(self.momentum @ self.momentum)
        return self.momentum / size if size > 0 else np.array([0.0, 0.0, 1.0])


@dataclass(slots=True)
class Truth:
    """Particles of one event in order of their start; a row's number is the `origin` of its deposits."""

    flights: list[Flight] = field(default_factory=list)
    ends: list[tuple[Array, float, float] | None] = field(default_factory=list)

    def add(self, flight: Flight) -> int:
        """Add a particle and return its row."""
        self.flights.append(flight)
        self.ends.append(None)
        return len(self.flights) - 1

    def end(self, row: int, position: Array, time_us: float, travelled_cm: float) -> None:
        """Note where a track has ended. The end of a shower is taken from its deposits instead."""
        self.ends[row] = (position, time_us, travelled_cm)

    def rows(self, deposits: Deposits) -> NDArray[np.void]:
        """`schema.PARTICLE` rows, the primary first: GeV, cm, and times in ns, as larcv3 files have them."""
        rows = np.zeros(len(self.flights), PARTICLE)
        deposited = np.bincount(deposits.origin, deposits.energy_mev, len(rows)) / 1e3
        for row, flight in enumerate(self.flights):
            out = rows[row]
            out["id"], out["trackid"], out["pdg"] = row, row + 1, flight.pdg
            out["shape"] = 0 if abs(flight.pdg) in (11, 22, 111) else 1
            out["current_type"] = out["interaction_type"] = -1
            out["px"], out["py"], out["pz"] = flight.momentum / 1e3
            out["energy_init"], out["energy_deposit"] = flight.energy_mev / 1e3, deposited[row]
            out["process"] = flight.process.encode()
            out["vtx"] = _point(flight.position, flight.time_us)
            self._fill_path(out, row, deposits)
            self._fill_family(out, row)
        return rows

    def _fill_path(self, out: np.void, row: int, deposits: Deposits) -> None:
        """First and last ionization, end point and length.

        A photon ends where it first leaves charge, and an electron at the charge that is farthest from its start.
        """
        flight = self.flights[row]
        mine = np.flatnonzero(deposits.origin == row)
        steps, times = deposits.position[mine], deposits.time_us[mine]
        if len(mine):
            distance = np.sqrt(((steps - flight.position) ** 2).sum(axis=1))
            far = int(distance.argmax()) if abs(flight.pdg) in (11, 22) else len(mine) - 1
            out["first_step"], out["last_step"] = _point(steps[0], times[0]), _point(steps[far], times[far])
        end = self.ends[row]
        if end is not None:
            out["end_pt"], out["dist_travel"] = _point(end[0], end[1]), end[2]
        elif len(mine):
            at = 0 if flight.pdg == 22 else far
            out["end_pt"], out["dist_travel"] = _point(steps[at], times[at]), distance[at]
        else:
            out["end_pt"] = out["vtx"]

    def _fill_family(self, out: np.void, row: int) -> None:
        """Parent and ancestor; a primary is its own parent and ancestor, as in LArSoft."""
        flight = self.flights[row]
        parent = row if flight.parent < 0 else flight.parent
        first = self.flights[0]
        out["parent_trackid"], out["parent_pdg"] = parent + 1, self.flights[parent].pdg
        out["parent_vtx"] = _point(self.flights[parent].position, self.flights[parent].time_us)
        out["ancestor_trackid"], out["ancestor_pdg"] = 1, first.pdg
        out["ancestor_vtx"] = _point(first.position, first.time_us)


def _point(position: Array, time_us: float) -> tuple[float, float, float, float]:
    return (float(position[0]), float(position[1]), float(position[2]), float(time_us) * 1e3)
