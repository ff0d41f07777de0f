"""Liquid argon as numbers: the Particle Data Group's, unless said otherwise.

PDG = Review of Particle Physics, Phys. Rev. D 110, 030001 (2024), and its "Atomic and nuclear properties" tables;
PDG 34 = its review "Passage of particles through matter", PDG 49 = "Kinematics".
"""

__all__ = [
    "ATOMIC_MASS",
    "ATOMIC_NUMBER",
    "BETHE_K",
    "DENSITY",
    "ELECTRON_MASS",
    "MEAN_EXCITATION_MEV",
    "PAIR_MEV",
    "PION_LENGTH_CM",
    "PROTON_LENGTH_CM",
    "RADIATION_LENGTH_CM",
]

ATOMIC_NUMBER = 18
ATOMIC_MASS = 39.948
DENSITY = 1.396
"""g/cm3 at the boiling point."""
MEAN_EXCITATION_MEV = 188e-6
RADIATION_LENGTH_CM = 19.55 / DENSITY
PION_LENGTH_CM = 149.0 / DENSITY
"""Pion inelastic interaction length at high energy."""
PROTON_LENGTH_CM = 119.7 / DENSITY
"""Nuclear interaction length."""
PAIR_MEV = 23.6e-6
"""Energy per electron-ion pair: Miyajima et al., Phys. Rev. A 9, 1438 (1974)."""
ELECTRON_MASS = 0.51099895
"""MeV."""
BETHE_K = 0.307075
"""MeV cm2/mol."""
