"""The launcher's command line, and the care of its processes until the last has ended."""
