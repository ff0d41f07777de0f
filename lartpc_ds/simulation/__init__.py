"""Single particles in a liquid-argon detector, from the vertex to zero-suppressed wires.

The way of an event: generate -> transport (tracks, showers, processes) -> drift -> response. docs/simulation.md lists
the formulae. A full Geant4 chain is the better simulation and a day's installation; this one is numpy alone, some
hundred events a second, and simple enough to read.
"""

from lartpc_ds.simulation.generate import ANYWHERE, Aim, SimulationSummary, simulate_event, simulate_file

__all__ = ["ANYWHERE", "Aim", "SimulationSummary", "simulate_event", "simulate_file"]
