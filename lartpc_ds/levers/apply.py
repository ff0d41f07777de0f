"""A run's way of computing, applied to its plain model: tiles first, then what is kept of its activations."""

from torch import nn

from lartpc_ds.config import MemoryConfig
from lartpc_ds.levers.recompute import recompute
from lartpc_ds.parallel.spatialize import TilePlan, convert
from lartpc_ds.parallel.tiles import Tiles

__all__ = ["apply"]


def apply(model: nn.Module, memory: MemoryConfig, plan: TilePlan, tiles: Tiles) -> None:
    """Changes `model`; `plan` was made with `memory.lean_norm`."""
    convert(model, plan, tiles)
    if memory.recompute == "block":
        recompute(model, tiles, plan.remade_at)
