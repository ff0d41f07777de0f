"""The configuration that a user asks for, its checks, and the run folder that keeps it."""
