"""Measured comparisons, each one command: `lartpc-ds bench NAME`."""
