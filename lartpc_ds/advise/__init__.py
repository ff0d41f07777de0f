"""What to run: plans, calibrations, tunings and benchmarks."""
