"""The check of all hosts of a job before it starts."""
