"""Ranks and their groups."""
