"""A pipeline stage is consecutive blocks of a model, in the form that DeepSpeed's pipeline engine wants.

A `PipelineModule` has as many layers as there are stages, and this rank builds one of them: its `Stage`. So DeepSpeed
has nothing to cut, and the layer files of its checkpoints are the stages. Rejected: one layer per block with a
partition of our own, which overrides DeepSpeed's private methods and needs two more layers at each border.

The stage is cut out of the whole model after `convert`: each block on its own finds its plans of tiles. For DeepSpeed
the ranks of a tile group are data replicas, as everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor, nn

from lartpc_ds.exact.memory.light import RunBlocks
from lartpc_ds.layout import Bounds, Layout

__all__ = ["Names", "Stage", "cut_stage", "pipeline_module"]


class Stage(nn.Module):
    """Some blocks in order, from the map that the stage before sends to the map that the next stage receives.

    A message must be contiguous and our maps are channels-last, so they travel as (N, H, W, C), which is a view.
    """

    def __init__(
        self,
        sequence: Sequence[tuple[str, nn.Module]],
        *,
        first: bool,
        last: bool,
        tick: Callable[[], None],
        run: RunBlocks | None = None,
    ) -> None:
        super().__init__()
        self._names = [name for name, _ in sequence]
        self.blocks = nn.ModuleList(block for _, block in sequence)
        self._first, self._last, self._tick, self._run = first, last, tick, run or one_by_one

    def forward(self, x: Tensor) -> Tensor:
        """Take images (N, planes, H, W) on the first stage, and return the model's output on the last."""
        if self.training:
            self._tick()
        if not self._first and x.ndim == 4:
            x = x.permute(0, 3, 1, 2)
        x = self._run(list(zip(self._names, self.blocks, strict=True)), x)
        if self._last:
            return x
        return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous()


def one_by_one(sequence: Sequence[tuple[str, nn.Module]], x: Tensor) -> Tensor:
    """Run blocks one after the other."""
    for _, block in sequence:
        x = block(x)
    return x


@dataclass(frozen=True)
class Names:
    """The names that the tensors of a stage have in the whole model."""

    order: tuple[str, ...]
    """All names of the whole model, in its order."""
    of_stage: dict[str, str]
    """The name in the stage, by name in the model."""
    outside: dict[str, Any]
    """The tensors that are in no block, which no stage changes; by name in the model, on the first stage."""

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return this stage's part of the whole model's state, from the state of the stage."""
        return {name: state[own] for name, own in self.of_stage.items()} | self.outside


def cut_stage(
    model: nn.Module,
    sequence: Sequence[tuple[str, nn.Module]],
    bounds: Bounds,
    number: int,
    tick: Callable[[], None],
    run: RunBlocks | None = None,
) -> tuple[Stage, Names]:
    """Take stage `number` out of a model; the stage keeps nothing else of the model alive.

    Args:
        model: the model, converted for this rank's tile.
        sequence: its named blocks.
        bounds: stage s has the blocks [B_s, B_s+1).
        number: the index of the stage.
        tick: a function that is called before the forward pass of every micro-batch in training.
        run: what the stage runs its blocks with; None means one after the other.
    """
    start, stop = bounds[number], bounds[number + 1]
    stage = Stage(sequence[start:stop], first=start == 0, last=stop == len(sequence), tick=tick, run=run)
    own = {id(value): name for name, value in stage.state_dict(keep_vars=True).items()}
    in_blocks = {id(value) for _, block in sequence for value in block.state_dict(keep_vars=True).values()}
    whole = model.state_dict(keep_vars=True)
    outside = {name: value for name, value in whole.items() if id(value) not in in_blocks} if start == 0 else {}
    of_stage = {name: own[id(value)] for name, value in whole.items() if id(value) in own}
    return stage, Names(tuple(whole), of_stage, outside)


def pipeline_module(stage: Stage, layout: Layout, loss: Callable[[Tensor, Tensor], Tensor]) -> PipelineModule:
    """Return what DeepSpeed trains; the last stage calls loss(outputs, targets).

    This is a collective of all ranks.
    """
    for parameter in stage.parameters():
        # without ZeRO, DeepSpeed's gradient norm leaves out parameters without this mark on all stages but the first
        parameter.model_parallel = True  # type: ignore[attr-defined]
    topology = ProcessTopology(axes=["pipe", "data"], dims=[layout.pipe, layout.data * layout.tiles])
    return PipelineModule([stage] * layout.pipe, topology=topology, loss_fn=loss, partition_method="uniform")
