"""Liquid argon as numbers, which are the Particle Data Group's unless a comment says otherwise.

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
"""Density in g/cm3 at the boiling point."""
MEAN_EXCITATION_MEV = 188e-6
RADIATION_LENGTH_CM = 19.55 / DENSITY
PION_LENGTH_CM = 149.0 / DENSITY
"""Inelastic interaction length of pions at high energy."""
PROTON_LENGTH_CM = 119.7 / DENSITY
"""Nuclear interaction length of protons."""
PAIR_MEV = 23.6e-6
"""Energy per electron-ion pair: Miyajima et al., Phys. Rev. A 9, 1438 (1974)."""
ELECTRON_MASS = 0.51099895
"""Mass in MeV."""
BETHE_K = 0.307075
"""The constant K of Bethe's formula in MeV cm2/mol."""
