"""The command line: each module parses a group of commands, calls what does the work, and chooses the exit code."""
