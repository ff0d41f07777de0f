"""What the Python stack says of a traced call: its line in the model, and what it is part of."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from lartpc_ds.parallel import modules

__all__ = ["autograd_function", "checkpointed", "in_checkpoint", "where"]

_PACKAGE = Path(__file__).parents[1]
_LIBRARY = (str(Path(torch.__file__).parent), str(_PACKAGE / "parallel"), str(_PACKAGE / "levers"))
_MODELS = str(_PACKAGE / "models")
_CHECKPOINTS = ("torch/utils/checkpoint.py", "activation_checkpointing/checkpointing.py")


def _frames() -> Iterator[FrameType]:
    """From the innermost out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def where() -> str:
    """The innermost line of a model; where a model of torch's own modules has none, it says so."""
    for frame in _frames():
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARY):
            ours = file.startswith(str(_PACKAGE)) and not file.startswith(_MODELS)
            return "torch.nn" if ours else f"{Path(file).name}:{frame.f_lineno}"
    return "?"


def in_checkpoint() -> bool:
    """Is the call made by a function, not a module, that recomputation will run once more?"""
    for frame in _frames():
        if frame.f_code.co_filename == modules.__file__:
            return False
        if frame.f_code.co_filename.endswith(_CHECKPOINTS):
            return True
    return False


def checkpointed() -> bool:
    """Is the call made inside torch.utils.checkpoint, by a function or a module?"""
    return any(frame.f_code.co_filename.endswith(_CHECKPOINTS) for frame in _frames())


def autograd_function() -> str | None:
    """The autograd function of the model's own whose forward makes the call; no torch function mode sees it itself."""
    for frame in _frames():
        if frame.f_code.co_name == "apply" and frame.f_code.co_filename.endswith("torch/autograd/function.py"):
            name: str = frame.f_locals["cls"].__name__
            if name != "CheckpointFunction":
                return name
    return None
