"""The exceptions whose message is all that a user needs; anything else is our bug and deserves its traceback.

A UserError stands for a mistake of the user's: the command line prints it and ends with exit code 2. It is a subclass
of ValueError, so that library users may catch the ordinary kind; not ValueError itself, because a ValueError from torch
or numpy is a bug. A RunError stands for a run that cannot go on although its input was accepted: exit code 1.
"""

__all__ = ["RunError", "UserError"]


class UserError(ValueError):
    """The message names the key or file, the value, what is allowed and what to do."""


class RunError(RuntimeError):
    """The message says at which step, what was found, and what to do; every rank raises the same."""
