"""How operators run on a tile, and the rules that plan or refuse each of them."""
