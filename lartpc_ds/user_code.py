"""Objects that a user names by their path, `my_pkg.module:name`: a network, images, a loss.

Rejected: `pkgutil.resolve_name`, because its AttributeError does not tell a name that the module lacks from a mistake
inside the module, which deserves its own traceback.
"""

import importlib
import re
import traceback
from collections.abc import Callable
from typing import Any

from lartpc_ds.errors import UserError

__all__ = ["import_function", "import_target", "where"]


def import_target(key: str, target: str, kind: str, advice: str) -> object:
    """Import the object that `target` names.

    Raises:
        UserError: `target` is not of the form 'my_pkg.module:<kind>', or there is no such module or no such name in it;
            the message names `key`.
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
    content: object = getattr(module, name, None)
    if content is None:
        raise UserError(f"{setting}: {module_name} has no such name; {advice}")
    return content


def import_function(key: str, target: str, parameters: str) -> Callable[..., Any]:
    """The function of `parameters` that `target` names.

    Raises:
        UserError: as `import_target`, or what `target` names is not callable.
    """
    advice = f"name a function of ({parameters})"
    function = import_target(key, target, "function", advice)
    if not callable(function):
        raise UserError(f"{key} = {target!r}: holds a {type(function).__name__}, which is not callable; {advice}")
    return function


def where(error: BaseException) -> str:
    """An error of a user's own code in one line: its type, the line of code that raised it, and its message."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}: {error}"
