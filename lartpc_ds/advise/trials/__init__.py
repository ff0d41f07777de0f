"""Trials: short real jobs through the launcher, and the folder that keeps what came of them."""
