"""What a run minimises: cross entropy or a user's own loss, of whole scores or of a map of which each rank has a tile.

A loss function gives a total and a weight, and the loss of a micro-batch is the sum of the totals over the sum of the
weights. Both sums run over the tiles, with a true adjoint, before they are divided. So a loss that is weighted by pixel
equals the loss on one device. Rejected: the mean of the tiles' own ratios, which does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.data.source import Range, Source
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Group
from lartpc_ds.exact.kernels.collectives import sum_over_ranks
from lartpc_ds.user_code import import_function, where

__all__ = ["Loss", "LossFunction", "Tally", "check_loss", "cross_entropy", "import_loss"]

LossFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A function from this rank's (outputs, targets) to (total, weight), two scalars."""

_NOT_COUNTED = -100


def cross_entropy(class_weights: Tensor | None = None) -> LossFunction:
    """The cross entropy of classes of events or of pixels; targets with a negative class are left out.

    `class_weights` have mean 1 over the training events, and the weight is the number of events. So the loss is a plain
    mean, which is exact under any division into micro-batches and ranks.
    """

    def function(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        counted = targets >= 0
        losses = F.cross_entropy(
            outputs, targets.masked_fill(~counted, _NOT_COUNTED), reduction="none", ignore_index=_NOT_COUNTED
        )
        if class_weights is not None:
            losses = losses * class_weights.to(losses.device)[targets]
        return losses.sum(), counted.sum().to(losses.dtype)

    return function


@dataclass(frozen=True, slots=True)
class Tally:
    """What a batch adds to an evaluation on this rank."""

    confusion: Tensor
    """Counts of events or pixels by (true class, predicted class), int64."""
    total: float
    weight: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss function, what its targets are, and how the tiles of an event share it."""

    function: LossFunction
    task: str = "events"
    """What a target is: one of `data.source.TASKS`."""
    group: Group | None = None
    """The ranks that each have a tile of the outputs; None if every rank has the same whole outputs."""
    part: tuple[Range, Range] | None = None
    """The rows and columns of the tile, where every rank has whole maps but only the targets of its tile."""

    def mine(self, outputs: Tensor) -> Tensor:
        """The outputs that this rank has targets for, in float32."""
        if self.part is not None:
            (top, bottom), (left, right) = self.part
            outputs = outputs[..., top:bottom, left:right]
        return outputs.float()

    def __call__(self, mine: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Total and weight of a micro-batch, the same on every rank of a tile group."""
        total, weight = self.function(mine, targets)
        if self.group is None:
            return total, weight
        total, weight = sum_over_ranks(torch.stack([total, weight.to(total.dtype)]), self.group).unbind()
        return total, weight

    def correct(self, mine: Tensor, targets: Tensor) -> tuple[int, int]:
        """How many classes are right on this rank, and out of how many."""
        if self.task == "own":
            return 0, 0
        counted = targets >= 0
        return int(((mine.argmax(1) == targets) & counted).sum()), int(counted.sum())

    def tally(self, mine: Tensor, targets: Tensor, num_classes: int) -> Tally:
        """What a batch of whole events adds to an evaluation, this rank's part only."""
        total, weight = (float(value) for value in self.function(mine, targets))
        if self.task == "own":
            return Tally(torch.zeros(num_classes, num_classes, dtype=torch.int64), total, weight)
        counted = targets >= 0
        pairs = (targets * num_classes + mine.argmax(1))[counted]
        return Tally(torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, -1).cpu(), total, weight)


def mean(total: Tensor, weight: Tensor) -> Tensor:
    """The total over the weight; 0 where nothing counts."""
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)


def import_loss(target: str) -> LossFunction:
    """The function that `train.loss_target` names; raises UserError if there is no such function."""
    return import_function("train.loss_target", target, "outputs, targets")


def check_loss(target: str, source: Source, scores: Tensor) -> None:
    """Check a user's loss by one call, on zeros in the shape of a small part of the first image's scores.

    Raises:
        UserError: it fails, or does not return two scalar tensors of which the total depends on the outputs.
    """
    function = import_loss(target)
    shape = list(scores.shape[1:])
    rows, cols = ((0, min(size, 16)) for size in source.image_shape[1:])
    if len(shape) == 3 and tuple(shape[1:]) == tuple(source.image_shape[1:]):
        shape[1:] = [rows[1], cols[1]]
    elif source.task == "own":
        return  # only the user knows which part of a target belongs to which part of such an output
    index = 0 if source.labels is None else int((source.labels >= 0).argmax())
    first = torch.as_tensor(source.read(index, rows, cols)[1])
    targets = (first if first.is_floating_point() else first.long())[None]
    outputs = torch.zeros(1, *shape, requires_grad=True)
    call = f"train.loss_target = {target!r}: on outputs of {tuple(outputs.shape)}, targets of {tuple(targets.shape)}"
    try:
        pair: Any = function(outputs, targets)
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"{call}: {where(error)}") from error
    if (
        not isinstance(pair, tuple)
        or len(pair) != 2
        or not all(isinstance(value, Tensor) and value.ndim == 0 for value in pair)
    ):
        values = pair if isinstance(pair, tuple) else (pair,)
        given = [f"tensor of {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in values]
        raise UserError(f"{call}: must return (total, weight), two scalar tensors; it returns {', '.join(given)}")
    if not pair[0].requires_grad:
        raise UserError(f"{call}: the total does not depend on the outputs, so nothing could be learned from it")
