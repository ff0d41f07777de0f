"""fit() and evaluate(): the wiring of one rank, then a short loop."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.errors import RunError
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.training import checkpoint, metrics
from lartpc_ds.training.checkpoint import Progress
from lartpc_ds.training.engine import Engine, StepResult, averaged_buffers
from lartpc_ds.training.loader import evaluation_batches, step_positions, training_steps
from lartpc_ds.training.losses import Loss
from lartpc_ds.training.nonfinite import blame
from lartpc_ds.training.prepare import Job

__all__ = ["Predictions", "Run", "evaluated", "fit", "predict"]

Predict = Callable[[torch.Tensor], torch.Tensor | None]
"""Images to outputs; None where another pipeline stage has them."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that a rank knows of its run before the engine exists."""

    folder: RunFolder
    config: RunConfig
    job: Job
    index: EventIndex
    name: str
    """Which run it is, as `files.json` has it."""
    facts: dict[str, Any]
    """Plain data that goes to every manifest, for a checkpoint to say what it belongs to."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scores of a dataset in its own order, whole on every rank: (events, classes) float32 logits and int64 truths."""

    logits: NDArray[np.float32]
    truths: NDArray[np.int64]

    def evaluate(self, classes: tuple[str, ...], own_loss: Loss | None = None) -> metrics.Evaluation:
        """The figures; the loss is the cross entropy, or a user's own."""
        figures = metrics.evaluate(self.logits, self.truths, classes)
        if own_loss is None:
            return figures
        tally = own_loss.tally(torch.from_numpy(self.logits), torch.from_numpy(self.truths), len(classes))
        return replace(figures, loss=tally.total / tally.weight if tally.weight else 0.0)


def predict(
    forward: Predict, dataset: EventDataset, config: RunConfig, groups: Groups, num_classes: int
) -> Predictions:
    """Run the whole dataset, shared over the data ranks; each event counts once whatever their number."""
    logits = torch.zeros(len(dataset), num_classes)
    for images, _, positions, valid in evaluation_batches(dataset, config, groups):
        if (outputs := forward(images)) is not None:
            logits[positions[valid]] = outputs.float().cpu()[valid]
    gathered: list[Any] = [None] * groups.layout.data
    dist.all_gather_object(gathered, logits, group=groups.data)
    # each row is zero on all ranks but one, so the sum is exact
    logits = groups.from_last_stage(torch.stack(gathered).sum(0))
    return Predictions(logits.numpy(), dataset.labels)


def tallied(
    forward: Predict, dataset: EventDataset, run: Run, groups: Groups, loss: Loss, device: torch.device
) -> metrics.Evaluation:
    """Figures of a dense model, or of one with a loss and targets of a user's own: sums over all pixels of all ranks.

    Scores of every pixel of every event are too many to keep, so nothing else remains of them.
    """
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


def evaluated(
    forward: Predict, dataset: EventDataset, run: Run, groups: Groups, loss: Loss, device: torch.device
) -> tuple[metrics.Evaluation, Predictions | None]:
    """All figures, and the scores of every event where a model gives scores for events.

    Raises:
        RunError: scores or loss are not finite; the same on every rank.
    """
    classes = run.job.classes
    if run.job.task != "events":
        return tallied(forward, dataset, run, groups, loss, device), None
    predictions = predict(forward, dataset, run.config, groups, len(classes))
    suspects = np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1)).tolist()
    if suspects:
        raise _not_finite("scores of evaluated events are", suspects, dataset, run)
    figures = predictions.evaluate(classes, loss if run.config.train.loss_target else None)
    if not math.isfinite(figures.loss):
        raise _not_finite("the loss of the evaluated events is", range(len(dataset)), dataset, run)
    return figures, predictions


def _not_finite(what: str, suspects: Iterable[int], dataset: EventDataset, run: Run) -> RunError:
    advice = "else the weights are at fault: evaluate an earlier checkpoint, or train with a smaller learning rate"
    return blame(f"{what} not finite", suspects, dataset, run.index, advice)


def fit(
    engine: Engine,
    run: Run,
    train_events: EventDataset,
    held_out: EventDataset | None,
    progress: Progress,
    memory: PeakMemory,
    stop_requested: Callable[[], bool],
) -> Predictions | None:
    """Train from `progress` to the last step; a stop request ends it after the step at hand, with a checkpoint.

    Returns:
        The last evaluation's predictions when the run is complete and has held-out events with labels; else None.

    Raises:
        Stopped: on a stop request, after its checkpoint is written.
    """
    config, job = run.config, run.job
    predictions: Predictions | None = None
    steps = training_steps(train_events, config, engine.groups, progress.step, job.max_steps)
    started = time.perf_counter()
    for micro_batches in steps:
        lr = engine.lr
        result = engine.step(micro_batches)
        total, most, stop = _over_ranks(engine, result, memory.peak_bytes(), stop_requested())
        _check_finite(engine, run, train_events, progress.step, result, total.loss_sum)
        now = time.perf_counter()
        step_seconds, started = now - started, now
        progress = replace(progress, step=progress.step + 1, events=progress.events + total.events)
        line: dict[str, float] = {"step": progress.step, "loss": total.loss_sum / total.events}
        if total.scored:
            line["accuracy"] = total.correct / total.scored
        line |= {"lr": lr, "events": progress.events, "step_seconds": step_seconds, "peak_bytes": most.peak_bytes}
        if job.layout.tiles > 1:
            line |= {"sent_bytes": most.sent_bytes, "wait_seconds": most.wait_seconds}
        if engine.precision == "fp16":
            line |= {"loss_scale": engine.loss_scale.value, "skipped_steps": engine.skipped_steps}
        if engine.groups.rank == 0:
            run.folder.append_metrics(line)
            watched = ("loss", "accuracy", "step_seconds", "loss_scale", "skipped_steps")
            engine.monitor({name: line[name] for name in watched if name in line}, progress.events)

        last = progress.step == job.max_steps
        best = False
        if held_out is not None and (last or _due(progress.step, config.train.eval_every)) and (last or not stop):
            predictions, progress, best = _evaluate(engine, run, held_out, progress)
        if last or stop or best or _due(progress.step, config.train.checkpoint_every):
            checkpoint.save(engine, run.folder.checkpoints, progress, run.name, run.facts, best=best)
        if stop and not last:
            raise Stopped
        started = time.perf_counter()
    return predictions


def _check_finite(
    engine: Engine, run: Run, events: EventDataset, step: int, result: StepResult, loss_sum: float
) -> None:
    """Stop on every rank alike: no later step is worth more than this one.

    Raises:
        RunError: the loss of the step is not finite, or its gradient is not with any loss scale.
    """
    if math.isfinite(loss_sum) and not result.hopeless:
        return
    finite = math.isfinite(loss_sum)
    suspects: list[int] = []
    if finite or not math.isfinite(result.loss_sum):
        suspects = step_positions(step, len(events), run.config, engine.groups)
    what = "the loss is finite but its gradient is not" if finite else f"the loss is {loss_sum}"
    advice = f"else take a smaller learning rate (now {engine.lr:.3g}) or a gradient_clipping above 0"
    if engine.precision == "fp16":
        advice += ", or bf16, since no map of float16 holds more than 65504"
    advice += "; --resume goes on from the last checkpoint"
    raise blame(f"step {step + 1}: {what}", suspects, events, run.index, advice)


class _Most(NamedTuple):
    """The largest of any rank."""

    peak_bytes: int
    sent_bytes: int
    wait_seconds: float


def _over_ranks(engine: Engine, result: StepResult, peak_bytes: int, stop: bool) -> tuple[StepResult, _Most, bool]:
    """Sums, maxima, and whether any rank was asked to stop: one small collective."""
    counts = [result.loss_sum, result.correct, result.scored, result.events]
    limits = [peak_bytes, result.sent_bytes, result.wait_seconds]
    rows = engine.groups.gather_rows([*counts, *limits, float(stop)], engine.device)
    loss_sum, correct, scored, events = rows[:, :4].sum(0).tolist()
    peak, sent, waited, any_stop = rows[:, 4:].amax(0).tolist()
    total = replace(result, loss_sum=loss_sum, correct=int(correct), scored=int(scored), events=int(events))
    return total, _Most(int(peak), int(sent), waited), bool(any_stop)


class Stopped(Exception):
    """The run stopped early on request and can be resumed."""


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(
    engine: Engine, run: Run, held_out: EventDataset, progress: Progress
) -> tuple[Predictions | None, Progress, bool]:
    started = time.perf_counter()
    with averaged_buffers(engine.module, engine.groups):
        evaluation, predictions = evaluated(engine.predict, held_out, run, engine.groups, engine.loss, engine.device)
    # targets that only a user's loss understands have no accuracy: then the smallest loss is the best
    score = -evaluation.loss if run.job.task == "own" else evaluation.balanced_accuracy.value
    line = {"step": progress.step, "evaluation": evaluation.as_dict(), "seconds": time.perf_counter() - started}
    if engine.groups.rank == 0:
        run.folder.append_metrics(line)
    best = not math.isnan(score) and (progress.best_score is None or score > progress.best_score)
    return predictions, replace(progress, best_score=score) if best else progress, best
