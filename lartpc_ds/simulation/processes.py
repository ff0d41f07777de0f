"""The processes that end a track (decay, capture at rest, nuclear interaction), and the particles that they make.

Decays are exact two- and three-body kinematics. Nuclear interactions are simplified, but have the right vertices: a
pion is absorbed into a star of nucleons, changes into a pi0, or scatters and knocks nucleons out. Rejected: an
intranuclear cascade, which would give better spectra and needs a nuclear model; a picture shows the kink, the star, the
missing track.
"""

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.simulation import argon
from lartpc_ds.simulation.kinematics import boost, isotropic, phase_space, turned
from lartpc_ds.simulation.particles import SPECIES

__all__ = ["at_rest", "decay", "interact", "interaction_per_cm"]

Array = NDArray[np.float64]
Products = list[tuple[int, Array]]

NEUTRINO = 14
MUON_CAPTURE = 0.76
"""The share of negative muons that are captured before they decay: 1 - 537 ns / 2197 ns, lifetime in argon after
Suzuki, Measday, Roalsvig, Phys. Rev. C 35, 2212 (1987)."""
_LIFETIME_US = {13: 2.19698, 211: 0.026033, 321: 0.01238}
_CAPTURED_MUON_US = 0.537
_BINDING_MEV = 8.0
_KAON_CHANNELS: tuple[tuple[float, tuple[int, ...]], ...] = (
    (0.6356, (-13, NEUTRINO)),
    (0.2067, (211, 111)),
    (0.0558, (211, 211, -211)),
    (0.0507, (111, -11, NEUTRINO)),
    (0.0335, (111, -13, NEUTRINO)),
    (0.0176, (211, 111, 111)),
)
"""Chances and daughters of the K+: PDG particle listings."""


def decay(pdg: int, momentum: Array, rng: np.random.Generator) -> Products:
    """The daughters (pdg, momentum in MeV/c) of a particle moving with `momentum`; neutrinos are left out."""
    mass = SPECIES[abs(pdg)].mass_mev
    daughters = _channel(pdg, rng)
    masses = np.array([_mass(code) for code in daughters])
    rest = _michel(rng) if abs(pdg) == 13 else phase_space(mass, masses.tolist(), rng)
    size = float(np.sqrt(momentum @ momentum))
    if size > 0:
        rest = boost(rest, masses, momentum / size, float(np.hypot(size, mass) / mass))
    return [(code, p) for code, p in zip(daughters, rest, strict=True) if code != NEUTRINO]


def _channel(pdg: int, rng: np.random.Generator) -> tuple[int, ...]:
    if pdg == 111:
        return (22, 22)
    if abs(pdg) == 13:
        return (11 if pdg > 0 else -11,)
    if abs(pdg) == 211:
        return (-13 if pdg > 0 else 13, NEUTRINO)
    chances = np.array([chance for chance, _ in _KAON_CHANNELS])
    return _KAON_CHANNELS[int(rng.choice(len(chances), p=chances / chances.sum()))][1]


def _michel(rng: np.random.Generator) -> Array:
    """The momentum (1, 3) of the electron that an unpolarized muon at rest decays to.

    Its spectrum is x2 (3 - 2x) with x = E / 52.8 MeV (PDG, muon decay parameters).
    """
    while True:
        x = rng.random()
        if rng.random() < x * x * (3 - 2 * x):
            break
    energy = max(x * 52.83, argon.ELECTRON_MASS * 1.01)
    momentum: Array = isotropic(1, rng) * np.sqrt(energy**2 - argon.ELECTRON_MASS**2)
    return momentum


def at_rest(pdg: int, rng: np.random.Generator) -> tuple[str, float, Products]:
    """What a stopped particle becomes: process, delay in us, daughters."""
    if pdg == 13:
        captured = rng.random() < MUON_CAPTURE
        delay = float(rng.exponential(_CAPTURED_MUON_US))
        # a captured muon leaves neutrons and soft photons, which are not followed
        return ("muMinusCaptureAtRest", delay, []) if captured else ("Decay", delay, decay(pdg, np.zeros(3), rng))
    if pdg == -211:
        return "hBertiniCaptureAtRest", 0.0, _star(SPECIES[211].mass_mev, 0.3, rng)
    if abs(pdg) in _LIFETIME_US:
        return "Decay", float(rng.exponential(_LIFETIME_US[abs(pdg)])), decay(pdg, np.zeros(3), rng)
    return "", 0.0, []


def interaction_per_cm(pdg: int, kinetic_mev: Array) -> Array:
    """The chance of a nuclear interaction per cm.

    Pions have PDG's interaction length, with the Delta resonance as a bump of half its height at 190 MeV and a fall
    below 80 MeV (approximate). Protons have PDG's length, with a fall below 30 MeV (approximate). K+, with the smallest
    cross section, are left out.
    """
    if abs(pdg) == 211:
        resonance = 1 + 0.5 * np.exp(-(((kinetic_mev - 190) / 110) ** 2))
        return np.minimum(kinetic_mev / 80, 1.0) * resonance / argon.PION_LENGTH_CM
    if pdg == 2212:
        return np.minimum(kinetic_mev / 30, 1.0) / argon.PROTON_LENGTH_CM
    return np.zeros_like(kinetic_mev)


def interact(pdg: int, momentum: Array, rng: np.random.Generator) -> tuple[str, Products]:
    """The process and the products of a pion's or proton's inelastic interaction; neutrons are left out."""
    mass = _mass(pdg)
    size = float(np.sqrt(momentum @ momentum))
    kinetic = float(np.hypot(size, mass)) - mass
    direction = momentum / size
    if pdg == 2212:
        return "protonInelastic", _scattered(2212, kinetic, direction, rng)
    name = "pi+Inelastic" if pdg > 0 else "pi-Inelastic"
    # absorption takes a third of the interactions at the Delta and little above it (Ashery et al., PRC 23, 2173 (1981))
    absorbed = 0.35 * np.exp(-max(kinetic - 250, 0) / 400)
    choice = rng.random()
    if choice < absorbed:
        return name, _star(kinetic + mass, 0.6 if pdg > 0 else 0.4, rng)
    return name, _scattered(111 if choice > 0.85 else pdg, kinetic, direction, rng)


def _scattered(pdg: int, kinetic: float, direction: Array, rng: np.random.Generator) -> Products:
    """The projectile goes on, slower and deflected; what it lost knocks nucleons out."""
    kept = kinetic * float(rng.uniform(0.3, 0.95))
    cosine = np.cos(np.abs(rng.normal(0, 0.7, 1)))
    forward = turned(direction[None], cosine, rng)[0]
    return [(pdg, forward * _momentum(kept, _mass(pdg))), *_star(kinetic - kept, 0.5, rng)]


def _star(energy_mev: float, protons: float, rng: np.random.Generator) -> Products:
    """The protons among two to five nucleons that share `energy_mev`."""
    count = int(rng.integers(2, 6))
    available = energy_mev - count * _BINDING_MEV
    if available <= 0:
        return []
    shares = rng.dirichlet(np.ones(count)) * available
    directions = isotropic(count, rng)
    charged = rng.random(count) < protons
    mass = SPECIES[2212].mass_mev
    return [(2212, directions[i] * _momentum(float(shares[i]), mass)) for i in range(count) if charged[i]]


def _momentum(kinetic: float, mass: float) -> float:
    return float(np.sqrt(kinetic * (kinetic + 2 * mass)))


def _mass(pdg: int) -> float:
    return 0.0 if pdg == NEUTRINO else SPECIES[abs(pdg)].mass_mev
