"""The Python stack says of a traced call which line of the model made it, and what it is part of.

A message must name a line of the user's code, and some calls (in a checkpoint, in an autograd function) can only be
recognised by who called them. Rejected: patching these functions of torch.
"""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from lartpc_ds.exact.trace import modules

__all__ = ["autograd_function", "checkpointed", "in_checkpoint", "is_invariant", "is_of_a_library", "place_of", "where"]

_PACKAGE = Path(__file__).parents[2]
_LIBRARY = (str(Path(torch.__file__).parent), str(_PACKAGE / "exact"))
_MODELS = str(_PACKAGE / "models")
_CHECKPOINTS = ("torch/utils/checkpoint.py", "activation_checkpointing/checkpointing.py")


def _frames() -> Iterator[FrameType]:
    """Yield the frames from the innermost one out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_of_a_library(frame: FrameType) -> bool:
    """Return whether a frame is of torch, or of what runs in its place here, and not of a model."""
    return frame.f_code.co_filename.startswith(_LIBRARY)


def is_invariant(error: Exception) -> bool:
    """Return whether an error is an assertion of this package, for which no model can be blamed."""
    innermost = [*traceback.walk_tb(error.__traceback__)][-1][0]
    return isinstance(error, AssertionError) and innermost.f_code.co_filename.startswith(_LIBRARY[1:])


def where() -> str:
    """Return the innermost line of a model, or "torch.nn" for a model of torch's own modules, which has none."""
    for frame in _frames():
        if not is_of_a_library(frame):
            return "torch.nn" if _is_ours(frame) else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    return "?"


def _is_ours(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(str(_PACKAGE)) and not file.startswith(_MODELS)


def place_of(error: Exception, model: nn.Module) -> str:
    """Return the innermost module and line of `model` that an exception came from."""
    names = {id(module): name for name, module in model.named_modules()}
    frames = [*traceback.walk_tb(error.__traceback__)][::-1]
    owners = (id(frame.f_locals.get("self")) for frame, _ in frames)
    layer = next((names[owner] for owner in owners if owner in names), "") or "the model's own forward"
    lines = (f"{Path(f.f_code.co_filename).name}:{n}" for f, n in frames if not (is_of_a_library(f) or _is_ours(f)))
    return f"{layer} ({next(lines, 'torch.nn')})"


def in_checkpoint() -> bool:
    """Return whether a function, not a module, makes the call, and recomputation will run it once more."""
    for frame in _frames():
        if frame.f_code.co_filename == modules.__file__:
            return False
        if frame.f_code.co_filename.endswith(_CHECKPOINTS):
            return True
    return False


def checkpointed() -> bool:
    """Return whether a function or a module makes the call inside torch.utils.checkpoint."""
    return any(frame.f_code.co_filename.endswith(_CHECKPOINTS) for frame in _frames())


def autograd_function() -> str | None:
    """Return the name of the model's own autograd function whose forward makes the call, if there is one.

    No torch function mode sees the autograd function itself.
    """
    for frame in _frames():
        if frame.f_code.co_name == "apply" and frame.f_code.co_filename.endswith("torch/autograd/function.py"):
            name: str = frame.f_locals["cls"].__name__
            if name != "CheckpointFunction":
                return name
    return None
