"""`lartpc-ds tune`: the best plans as short real jobs."""
