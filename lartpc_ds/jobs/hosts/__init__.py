"""The hosts of a job, and how a command reaches them."""
