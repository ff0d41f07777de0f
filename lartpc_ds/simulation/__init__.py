"""Single particles in a liquid-argon detector, from the vertex to zero-suppressed wires.

An event goes through generate, transport (tracks, showers, processes), drift and response; docs/simulation.md lists the
formulae. Rejected: a full Geant4 chain, which is the better simulation and takes a day to install. This simulation
needs numpy alone, makes some hundred events per second, and is simple enough to read.
"""
