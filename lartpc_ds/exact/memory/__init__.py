"""Levers on the memory of one device: recomputation, strips of rows, and lit patches."""
