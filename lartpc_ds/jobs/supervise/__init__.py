"""The command line of the launcher, and the supervision of its processes until the last one has ended."""
