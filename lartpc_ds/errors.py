"""The exceptions whose message is all that a user needs; any other exception is a bug of ours and shows its traceback.

A UserError stands for a mistake of the user: the command line prints it and ends with exit code 2. It is a subclass of
ValueError, so that users of the library may catch the ordinary kind. It is not ValueError itself, because a ValueError
from torch or numpy is a bug. A RunError stands for a run that cannot go on although its input was accepted: the command
line ends with exit code 1.
"""

__all__ = ["RunError", "UserError"]


class UserError(ValueError):
    """A mistake of the user; the message names the key or file, the value, what is allowed and what to do."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says at which step, why, and what to do. Every rank raises the same one."""
