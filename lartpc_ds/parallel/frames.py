"""What the Python stack says of a traced call: its line in the model, and what it is part of."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from lartpc_ds.parallel import modules

__all__ = ["in_checkpoint", "seeing_functions", "where"]

_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_CHECKPOINTS = ("torch/utils/checkpoint.py", "activation_checkpointing/checkpointing.py")


def _frames() -> Iterator[FrameType]:
    """From the innermost out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def where() -> str:
    """The innermost line that is neither torch's nor ours."""
    for frame in _frames():
        if not frame.f_code.co_filename.startswith(_LIBRARY):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    return "?"


def in_checkpoint() -> bool:
    """Is the call made by a function, not a module, that recomputation will run once more?"""
    for frame in _frames():
        if frame.f_code.co_filename == modules.__file__:
            return False
        if frame.f_code.co_filename.endswith(_CHECKPOINTS):
            return True
    return False


@contextmanager
def seeing_functions(meet: Callable[[type, Any, Any], None]) -> Iterator[None]:
    """Inside, meet(function, args, kwargs) is called before every autograd function that is applied.

    No torch function mode sees them.
    """
    function: Any = torch.autograd.Function
    apply = function.__dict__["apply"]

    def met(cls: type, *args: Any, **kwargs: Any) -> Any:
        meet(cls, args, kwargs)
        return apply.__func__(cls, *args, **kwargs)

    function.apply = classmethod(met)
    try:
        yield
    finally:
        function.apply = apply
