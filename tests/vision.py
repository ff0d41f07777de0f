"""Import this before timm or torchvision.

torchvision from PyPI is linked against CUDA torch; beside a CPU-only torch its library does not load, and its import
fails because the operators that it lacks have no schema. No network here calls them, so a schema is all they need.
"""

import importlib.util
from pathlib import Path

import torch

__all__ = ["library"]


def _schemas() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C.*")))
    except OSError:
        missing = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            missing.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return missing
    return None


library = _schemas()
"""To be kept alive: its schemas go when it does."""
