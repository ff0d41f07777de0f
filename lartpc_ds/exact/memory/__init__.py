"""Levers on the memory of one device: recomputation, and strips of rows."""
