"""The command line: one module per group of commands, which parses, calls and chooses the exit code."""
