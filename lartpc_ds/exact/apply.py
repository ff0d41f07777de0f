"""A run's way of computing is applied to its plain model: tiles, and what is computed and kept of its activations.

The order is fixed: strips and patches wrap their blocks first, so that tiles and recomputation stand around them.
"""

from torch import nn

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.memory.light import RunBlocks, light
from lartpc_ds.exact.memory.lit_plan import LitPlan
from lartpc_ds.exact.memory.recompute import recompute
from lartpc_ds.exact.memory.spare import Spare
from lartpc_ds.exact.memory.stream import stream
from lartpc_ds.exact.memory.strip_plan import StripPlan
from lartpc_ds.exact.spatialize import TilePlan, convert
from lartpc_ds.models.build import blocks

__all__ = ["apply"]


def apply(
    model: nn.Module,
    memory: MemoryConfig,
    plan: TilePlan,
    tiles: Tiles,
    strips: StripPlan | None = None,
    lit: LitPlan | None = None,
) -> RunBlocks | None:
    """Change `model`; `plan` was made with `memory.lean_norm`, `strips` or `lit` with the keys that ask for them.

    Returns:
        What a first pipeline stage must run its blocks with; None means one after the other.
    """
    if strips is not None:
        stream(model, strips)
    spare = Spare() if memory.recompute == "auto" else None
    run = None if lit is None else light(model, lit, tiles, plan.lean_norms, spare)
    convert(model, plan, tiles)
    if memory.recompute != "none":
        # a streamed front keeps nothing, and modules that are made again keep their input only
        kept = [] if strips is None else [block for _, block in blocks(model)[: len(strips.front)]]
        remade = [] if lit is not None else plan.remade_at  # on patches a small input is not small
        recompute(model, tiles, [*kept, *map(model.get_submodule, remade)], spare)
    return run
