"""The one exception that stands for a mistake of the user's.

The command line prints its message without a traceback and ends with exit code 2. A subclass of ValueError, so that
library users may catch the ordinary kind; not ValueError itself, because a ValueError from torch or numpy is our bug
and deserves its traceback.
"""

__all__ = ["UserError"]


class UserError(ValueError):
    """The message names the key or file, the value, what is allowed and what to do."""
