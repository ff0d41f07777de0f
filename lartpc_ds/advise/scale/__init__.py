"""`lartpc-ds scale`: how the rate of a run grows with its ranks."""
