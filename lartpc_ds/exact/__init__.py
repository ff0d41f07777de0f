"""The same numbers with less memory per device: tiles, stages, strips, recomputation and lean norms."""
