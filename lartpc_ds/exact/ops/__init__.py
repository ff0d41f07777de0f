"""How each operator runs on a tile: one module per family, with its rules and its refusals."""
