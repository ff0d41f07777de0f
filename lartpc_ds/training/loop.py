"""The training loop of one rank: steps, evaluations of the held-out events, checkpoints and the stop."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.training import checkpoint
from lartpc_ds.training.checkpoint import Progress
from lartpc_ds.training.engine import Engine, StepResult, averaged_buffers
from lartpc_ds.training.evaluation import Predictions, evaluate_dataset
from lartpc_ds.training.loader import step_positions, training_steps
from lartpc_ds.training.nonfinite import blame
from lartpc_ds.training.prepare import Run
from lartpc_ds.training.step_clock import PhaseSeconds

__all__ = ["Stopped", "fit"]


def fit(
    engine: Engine,
    run: Run,
    train_events: EventDataset,
    held_out: EventDataset | None,
    progress: Progress,
    memory: PeakMemory,
    stop_requested: Callable[[], bool],
) -> Predictions | None:
    """Train from `progress` to the last step; a stop request ends training after the step at hand, with a checkpoint.

    Returns:
        The last evaluation's predictions when the run is complete and has held-out events with labels; else None.

    Raises:
        Stopped: on a stop request, after its checkpoint is written.
    """
    config, job = run.config, run.job
    predictions: Predictions | None = None
    steps = training_steps(train_events, config, engine.groups, progress.step, job.max_steps, run.train_costs)
    started = time.perf_counter()
    for micro_batches in steps:
        lr = engine.lr
        result = engine.step(micro_batches)
        total = _over_ranks(engine, result, memory.peak_bytes(), stop_requested())
        _check_finite(engine, run, train_events, progress.step, result, total.loss_sum)
        step_seconds = time.perf_counter() - started
        progress = replace(progress, step=progress.step + 1, events=progress.events + total.events)
        if engine.groups.rank == 0:
            _log_step(engine, run, progress, total, lr, step_seconds)

        last = progress.step == job.max_steps
        best = False
        if held_out is not None and (last or _due(progress.step, config.train.eval_every)) and (last or not total.stop):
            predictions, progress, best = _validate(engine, run, held_out, progress)
        if last or total.stop or best or _due(progress.step, config.train.checkpoint_every):
            checkpoint.save(engine, run.folder.checkpoints, progress, run.name, run.facts, best=best)
        if total.stop and not last:
            raise Stopped
        started = time.perf_counter()
    return predictions


def _check_finite(
    engine: Engine, run: Run, events: EventDataset, step: int, result: StepResult, loss_sum: float
) -> None:
    """Stop the run on all ranks alike when a step is not finite, because no later step would be worth more.

    Raises:
        RunError: the loss of the step is not finite, or its gradient is not finite with any loss scale.
    """
    if math.isfinite(loss_sum) and not result.hopeless:
        return
    finite = math.isfinite(loss_sum)
    suspects: list[int] = []
    if finite or not math.isfinite(result.loss_sum):
        suspects = step_positions(step, len(events), run.config, engine.groups, run.train_costs)
    what = "the loss is finite but its gradient is not" if finite else f"the loss is {loss_sum}"
    advice = f"else take a smaller learning rate (now {engine.lr:.3g}) or a gradient_clipping above 0"
    if engine.precision == "fp16":
        advice += ", or bf16, since no map of float16 holds more than 65504"
    advice += "; --resume goes on from the last checkpoint"
    raise blame(f"step {step + 1}: {what}", suspects, events, run.index, advice)


class _AllRanks(NamedTuple):
    """One step of all ranks: sums of what each has counted, the largest value that any rank has, then seconds."""

    loss_sum: float
    correct: int
    scored: int
    events: int
    peak_bytes: int
    sent_bytes: int
    wait_seconds: float
    stop: bool
    """Whether any rank was asked to stop."""
    seconds: PhaseSeconds
    """The mean over the ranks."""
    busy_seconds: list[float]
    """What each rank spends on its own work; messages and waiting do not count."""

    @property
    def straggler_factor(self) -> float:
        """The own work of the slowest rank, over the mean."""
        return max(self.busy_seconds) * len(self.busy_seconds) / max(sum(self.busy_seconds), 1e-9)


def _over_ranks(engine: Engine, result: StepResult, peak_bytes: int, stop: bool) -> _AllRanks:
    """Combine what the ranks know of a step, by one small collective."""
    counts = [result.loss_sum, result.correct, result.scored, result.events]
    limits = [peak_bytes, result.sent_bytes, result.wait_seconds, float(stop)]
    rows = engine.groups.gather_rows([*counts, *limits, *result.seconds.as_row()], engine.device)
    loss_sum, correct, scored, events = rows[:, :4].sum(0).tolist()
    peak, sent, waited, any_stop = rows[:, 4:8].amax(0).tolist()
    sums = int(correct), int(scored), int(events)
    mean = PhaseSeconds(*rows[:, 8:].mean(0).tolist())
    busy = [PhaseSeconds(*row).busy for row in rows[:, 8:].tolist()]
    return _AllRanks(loss_sum, *sums, int(peak), int(sent), waited, bool(any_stop), mean, busy)


def _log_step(engine: Engine, run: Run, progress: Progress, total: _AllRanks, lr: float, step_seconds: float) -> None:
    """Append a step's line to the metrics, and hand its numbers to the monitors."""
    line: dict[str, Any] = {"step": progress.step, "loss": total.loss_sum / total.events}
    if total.scored:
        line["accuracy"] = total.correct / total.scored
    line |= {"lr": lr, "events": progress.events, "step_seconds": step_seconds, "peak_bytes": total.peak_bytes}
    line |= {f"{name}_seconds": value for name, value in asdict(total.seconds).items()}
    line |= {"straggler_factor": total.straggler_factor}
    line |= {"busy_seconds": [round(seconds, 6) for seconds in total.busy_seconds]}
    if run.job.layout.tiles > 1:
        line |= {"sent_bytes": total.sent_bytes, "wait_seconds": total.wait_seconds}
    if engine.precision == "fp16":
        line |= {"loss_scale": engine.loss_scale.value, "skipped_steps": engine.skipped_steps}
    run.folder.append_metrics(line)
    watched = ("loss", "accuracy", "step_seconds", "loss_scale", "skipped_steps")
    engine.monitor({name: line[name] for name in watched if name in line}, progress.events)


class Stopped(Exception):
    """Says that the run stopped early on request and can be resumed."""


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _validate(
    engine: Engine, run: Run, held_out: EventDataset, progress: Progress
) -> tuple[Predictions | None, Progress, bool]:
    """Evaluate the held-out events: predictions, progress with the best score so far, and whether this is the best."""
    started = time.perf_counter()
    with averaged_buffers(engine.module, engine.groups):
        evaluation, predictions = evaluate_dataset(
            engine.predict, held_out, run, engine.groups, engine.loss, engine.device
        )
    # targets that only a user's loss understands have no accuracy, so for them the smallest loss is the best
    score = -evaluation.loss if run.job.task == "own" else evaluation.balanced_accuracy.value
    line = {"step": progress.step, "evaluation": evaluation.as_dict(), "seconds": time.perf_counter() - started}
    if engine.groups.rank == 0:
        run.folder.append_metrics(line)
    best = not math.isnan(score) and (progress.best_score is None or score > progress.best_score)
    return predictions, replace(progress, best_score=score) if best else progress, best
