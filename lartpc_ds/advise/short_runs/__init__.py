"""Short runs of training, by which benchmarks, calibrations and tunings measure a step."""
