"""The same numbers with less memory per device: tiles, stages, strips, lit patches, recomputation and lean norms."""
