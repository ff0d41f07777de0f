"""Evaluation of a dataset by all ranks: figures, and scores per event where a model gives scores for events.

Each event counts once whatever the number of ranks. Scores of events are gathered whole, so that no figure depends on
the order of batches; scores of every pixel of every event are too many to keep, so of those only sums remain.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.integrity import write_atomically, write_csv
from lartpc_ds.errors import RunError
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.layout import Layout
from lartpc_ds.training import metrics
from lartpc_ds.training.loader import evaluation_batches
from lartpc_ds.training.losses import Loss
from lartpc_ds.training.nonfinite import blame
from lartpc_ds.training.prepare import Run

__all__ = ["EvaluationRequest", "Predictions", "evaluate_dataset", "write_predictions"]

Forward = Callable[[torch.Tensor], torch.Tensor | None]
"""A function from images to outputs; it returns None where another pipeline stage has the outputs."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What `lartpc-ds evaluate` asks of the ranks: `request.json` in the job's logs."""

    checkpoint: Path
    """The folder of the checkpoint whose weights are evaluated."""
    files: tuple[str, ...]
    """Paths of the event files; none for images of a user's own."""
    events: Path
    """The table of events (`events.csv`) that belongs to these files."""
    positions: tuple[int, ...]
    """The events to evaluate, as rows of that table."""
    layout: Layout
    predictions: Path
    """The CSV file that the scores of events are written to."""
    evaluation: Path
    """The JSON file that the figures are written to."""

    def write(self, path: Path) -> None:
        """Write the request as JSON."""
        write_atomically(path, json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` has written."""
        return TypeAdapter(cls).validate_json(path.read_text())


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scores of a dataset in its own order, whole on every rank: (events, classes) float32 logits and int64 truths."""

    logits: NDArray[np.float32]
    truths: NDArray[np.int64]


def evaluate_dataset(
    forward: Forward, dataset: EventDataset, run: Run, groups: Groups, loss: Loss, device: torch.device
) -> tuple[metrics.Evaluation, Predictions | None]:
    """All figures, and the scores of every event where a model gives scores for events.

    Raises:
        RunError: scores or loss are not finite; the same on every rank.
    """
    classes = run.job.classes
    if run.job.task != "events":
        return _tallied(forward, dataset, run, groups, loss, device), None
    predictions = _predicted(forward, dataset, run.config, groups, len(classes))
    suspects = np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1)).tolist()
    if suspects:
        raise _not_finite("scores of evaluated events are", suspects, dataset, run)
    logits, truths = predictions.logits, predictions.truths
    figures = metrics.of_scores(logits, truths, classes)
    if run.config.train.loss_target is not None:
        tally = loss.tally(torch.from_numpy(logits), torch.from_numpy(truths), len(classes))
        figures = replace(figures, loss=tally.total / tally.weight if tally.weight else 0.0)
    if not math.isfinite(figures.loss):
        raise _not_finite("the loss of the evaluated events is", range(len(dataset)), dataset, run)
    return figures, predictions


def _predicted(
    forward: Forward, dataset: EventDataset, config: RunConfig, groups: Groups, num_classes: int
) -> Predictions:
    """Run the whole dataset, shared over the data ranks, and gather its scores."""
    logits = torch.zeros(len(dataset), num_classes)
    for images, _, positions, valid in evaluation_batches(dataset, config, groups):
        if (outputs := forward(images)) is not None:
            logits[positions[valid]] = outputs.float().cpu()[valid]
    gathered: list[Any] = [None] * groups.layout.data
    dist.all_gather_object(gathered, logits, group=groups.data)
    # each row is zero on all ranks but one, so the sum is exact
    logits = groups.from_last_stage(torch.stack(gathered).sum(0))
    return Predictions(logits.numpy(), dataset.labels)


def _tallied(
    forward: Forward, dataset: EventDataset, run: Run, groups: Groups, loss: Loss, device: torch.device
) -> metrics.Evaluation:
    """Figures of a dense model, or of one with a user's own loss and targets: sums over all pixels of all ranks."""
    classes = run.job.classes
    sums = torch.zeros(len(classes) ** 2 + 2, dtype=torch.float64)  # exact up to 2^53
    suspects: list[int] = []
    for images, targets, positions, valid in evaluation_batches(dataset, run.config, groups):
        outputs = forward(images)
        if outputs is None:
            continue
        mine = loss.mine(outputs)
        if valid.any() and (groups.leads or loss.group is not None):
            chosen = torch.from_numpy(valid)
            tally = loss.tally(mine[chosen.to(mine.device)], targets[chosen].to(mine.device), len(classes))
            if not math.isfinite(tally.total):
                suspects += positions[valid].tolist()
            sums += torch.cat([tally.confusion.flatten().double(), torch.tensor([tally.total, tally.weight]).double()])
    *counts, total, weight = groups.gather_rows(sums.tolist(), device).sum(0).tolist()
    if not math.isfinite(total):
        raise _not_finite("the loss of the evaluated events is", suspects, dataset, run)
    counted = np.array(counts, np.int64).reshape(len(classes), -1)
    mean = total / weight if weight else 0.0  # as in training: what is not counted costs nothing
    unit = "pixels" if loss.task == "pixels" else "events"
    return metrics.of_confusion(counted, mean, classes, events=len(dataset), counted=unit)


def _not_finite(what: str, suspects: Iterable[int], dataset: EventDataset, run: Run) -> RunError:
    advice = "else the weights are at fault: evaluate an earlier checkpoint, or train with a smaller learning rate"
    return blame(f"{what} not finite", suspects, dataset, run.index, advice)


def write_predictions(
    path: Path, index: EventIndex, positions: NDArray[np.int64], predictions: Predictions, classes: tuple[str, ...]
) -> None:
    """Write the table of scores: who each event is, its true and its predicted class, and a softmax score per class."""
    scores = torch.from_numpy(predictions.logits).double().softmax(1).numpy()
    header = ["file", "index", "run", "subrun", "event", "truth", "prediction", *(f"score_{name}" for name in classes)]
    rows = (
        [*astuple(index.ids[position]), classes[truth], classes[int(row.argmax())], *(f"{score:.6g}" for score in row)]
        for position, truth, row in zip(positions.tolist(), predictions.truths.tolist(), scores, strict=True)
    )
    write_csv(path, header, rows)
