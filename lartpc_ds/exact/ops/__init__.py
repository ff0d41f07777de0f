"""Each module says how a family of torch functions runs on a tile, a strip or patches, or why it is refused."""
