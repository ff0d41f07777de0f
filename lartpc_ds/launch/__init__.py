"""From a prepared run folder to running ranks: the deepspeed command line, and the care of its processes."""
