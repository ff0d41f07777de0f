"""Measurements of speed and memory, each variant in a fresh process; never part of the tests."""
