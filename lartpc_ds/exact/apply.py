"""A run's way of computing, applied to its plain model: tiles, and what is kept of its activations."""

from torch import nn

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.memory.recompute import recompute
from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import StripPlan
from lartpc_ds.exact.spatialize import TilePlan, convert
from lartpc_ds.models.build import blocks

__all__ = ["apply"]


def apply(
    model: nn.Module, memory: MemoryConfig, plan: TilePlan, tiles: Tiles, strips: StripPlan | None = None
) -> None:
    """Changes `model`; `plan` was made with `memory.lean_norm`, `strips` with `memory.stream_strips` if above 1."""
    if strips is not None:
        stream(model, strips)
    convert(model, plan, tiles)
    if memory.recompute == "block":
        # a streamed front keeps nothing, and of the modules that are made again the input is all that is kept
        kept = [] if strips is None else [block for _, block in blocks(model)[: len(strips.front)]]
        recompute(model, tiles, [*kept, *map(model.get_submodule, plan.remade_at)])
