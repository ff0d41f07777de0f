"""Objects that a user names by their path, `my_pkg.module:name`: a network, images, a loss.

Rejected: `pkgutil.resolve_name`, because its AttributeError does not tell a name that the module lacks from a mistake
inside the module, which deserves its own traceback.
"""

import importlib
import re
import traceback

from lartpc_ds.errors import UserError

__all__ = ["import_target", "where"]


def import_target(key: str, target: str, kind: str, advice: str) -> object:
    """Import the object that `target` names.

    Raises:
        UserError: naming `key`: the target is not of the form 'my_pkg.module:<kind>', there is no such module, or the
            module has no such name.
    """
    setting = f"{key} = {target!r}"
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", target):
        raise UserError(f"{setting} must read 'my_pkg.module:{kind}'")
    module_name, name = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{setting}: cannot import {module_name} ({error}); install it or add its folder to PYTHONPATH"
        ) from error
    named: object = getattr(module, name, None)
    if named is None:
        raise UserError(f"{setting}: {module_name} has no such name; {advice}")
    return named


def where(error: BaseException) -> str:
    """Describe an error of a user's own code in one line: what it is, and the last line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}: {error}"
