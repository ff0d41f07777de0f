"""Code that a user gave to torch.compile runs as it was written wherever calls are followed.

A compiled module or function hides its calls from torch function modes, and torch's compiler cannot trace through one.
Rejected: taking `torch.compile` off a network when it is built, which would rename its weights (`_orig_mod.`) and miss
functions that are decorated with it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lartpc_ds.lazy_compiler import is_loaded

__all__ = ["uncompiled"]


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, nothing is compiled and nothing compiled runs."""
    # nothing can be compiled before torch's compiler is imported, which takes seconds
    return torch.compiler.set_stance("force_eager") if is_loaded() else nullcontext()
