"""Which hosts a job has, and how a command reaches them."""
