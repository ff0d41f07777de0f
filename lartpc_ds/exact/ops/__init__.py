"""Each module says how a family of torch functions runs on a tile or a strip, or why it is refused."""
