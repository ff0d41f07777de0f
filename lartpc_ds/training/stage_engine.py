"""One rank's engine where the model is cut into pipeline stages: `engine.Engine` over DeepSpeed's 1F1B schedule.

Only the first stage needs images, and only the last stage needs targets and knows losses. The other stages answer with
zeros and None, so that the loop is the same for all ranks.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lartpc_ds.config.ds_config import CompletedConfig
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.memory.light import RunBlocks
from lartpc_ds.exact.pipeline import cut_stage, pipeline_module
from lartpc_ds.layout import Bounds
from lartpc_ds.models.build import blocks
from lartpc_ds.training.engine import Engine, averaged_buffers, channels_last
from lartpc_ds.training.losses import Loss, mean
from lartpc_ds.training.step_clock import Phase

__all__ = ["StageEngine"]

_PHASES: dict[str, Phase] = {
    "LoadMicroBatch": "other",  # reading has its own clock
    "ForwardPass": "forward",
    "BackwardPass": "backward",
    "OptimizerStep": "update",
    "ReduceGrads": "reduce",
    "ReduceTiedGrads": "reduce",
    "SendActivation": "stage",
    "RecvActivation": "stage",
    "SendGrad": "stage",
    "RecvGrad": "stage",
}
"""The phase of each instruction of DeepSpeed's schedule."""


class StageEngine(Engine):
    """The engine of this rank's stage of `model`, which is cut at `bounds` after it was converted with `tiles`.

    The stage runs its blocks with `run`, which `exact.apply` has returned.
    """

    def __init__(
        self,
        model: nn.Module,
        bounds: Bounds,
        ds: CompletedConfig,
        groups: Groups,
        device: torch.device,
        loss: Loss | None = None,
        tiles: Tiles | None = None,
        run: RunBlocks | None = None,
    ) -> None:
        self._at = groups.layout.coordinates(groups.rank).pipe
        self._part = 0
        self._trains = True
        self._stage, self._names = cut_stage(model, blocks(model), bounds, self._at, self._tick, run)
        module = pipeline_module(self._stage, groups.layout, self._mean_loss)
        super().__init__(module, ds, groups, device, loss, tiles or groups.tiles())
        # DeepSpeed receives maps and gradients in one buffer, of the type of whichever came first
        self.deepspeed._INSTRUCTION_MAP = {
            kind: self.clock.timed(_PHASES[kind.__name__], instruction)
            for kind, instruction in type(self.deepspeed)._INSTRUCTION_MAP.items()
        }
        self.deepspeed._allocate_or_extend_buffers = lambda _, shape, dtype: torch.zeros(
            shape, dtype=dtype, device=device
        )

    def _tick(self) -> None:
        """Set the clock to the next micro-batch: a stage sees them in order, whatever passes backward in between."""
        layout = self.groups.layout
        self._tiles.clock.micro_batch = self._part * layout.data + self.groups.data_rank
        self._part += 1

    def _mean_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mine = self.loss.mine(outputs)
        total, weight = self.loss(mine, targets)
        self._count(mine.detach(), targets, total.detach(), weight.detach())
        return mean(total, weight)

    def _micro_batches(self, micro_batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._shapes_of(training=True)
        self._part = 0
        # map keeps no batch; a generator's frame would hold the host's images through the whole step
        self.deepspeed.train_batch(map(self._ready, micro_batches))

    def _ready(self, batch: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        """The batch as DeepSpeed takes it; it asks the first and the last stage only."""
        return (channels_last(batch[0], self.device) if self._at == 0 else batch[0]), batch[1]

    def predict(self, images: torch.Tensor) -> torch.Tensor | None:
        """The outputs in evaluation mode, on the last stage; a collective of all ranks."""
        self._shapes_of(training=False)
        self.deepspeed.total_loss = None  # DeepSpeed would add the outputs to the loss of the last step
        with self._unwatched():
            _, outputs = self.deepspeed.eval_batch(
                iter([self._ready((images, None))]),
                return_logits=True,
                compute_loss=False,
                reduce_output=None,
                num_micro_batches=1,
            )
        return outputs  # type: ignore[no-any-return]

    def _shapes_of(self, *, training: bool) -> None:
        """Make the stages exchange shapes and types anew, since a network may have others in evaluation."""
        if training != self._trains:
            self._trains = training
            self.deepspeed.reset_activation_shape()

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Switch monitors off: DeepSpeed would report an evaluation's loss, which the first stage does not have."""
        monitor = self.deepspeed.monitor
        before, monitor.enabled = monitor.enabled, False
        yield
        monitor.enabled = before

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole fp32 weights and buffers of all stages on the host, as the whole model names them; a collective."""
        with averaged_buffers(self.module, self.groups):
            state = self._names.whole(self._stage.state_dict())
            mine = {name: value.detach().cpu().clone() for name, value in state.items()}
        parts: list[Any] = [None] * self.groups.layout.pipe
        dist.all_gather_object(parts, mine, group=self.groups.pipe)
        together = {name: value for part in parts for name, value in part.items()}
        return {name: together[name] for name in self._names.order}
