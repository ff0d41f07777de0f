"""`lartpc-ds calibrate`: what this machine does in a second."""
