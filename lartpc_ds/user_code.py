"""What a user brings by its path, `my_pkg.module:name`: a network, images, a loss."""

import importlib
import re
import traceback

from lartpc_ds.errors import UserError

__all__ = ["import_target", "where"]


def import_target(key: str, target: str, kind: str, advice: str) -> object:
    """The object that `target` names.

    Raises:
        UserError: naming `key`: not of the form 'my_pkg.module:<kind>', no such module, or no such name in it.
    """
    told = f"{key} = {target!r}"
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", target):
        raise UserError(f"{told} must read 'my_pkg.module:{kind}'")
    module_name, name = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{told}: cannot import {module_name} ({error}); install it or add its folder to PYTHONPATH"
        ) from error
    found: object = getattr(module, name, None)
    if found is None:
        raise UserError(f"{told}: {module_name} has no such name; {advice}")
    return found


def where(error: BaseException) -> str:
    """An error of a user's own code in one line: what, and the last line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}: {error}"
