"""`lartpc-ds bench compare`: what users would otherwise write, beside ours, on the same network, events and cores.

Every variant is one loop in fresh processes, and all take turns. A variant of ours is compared with baselines of its
own kind, which do the same work for an event; tiles have none but one process that has all cores. Times are compared
per event, since the kinds differ in the events of a step. A baseline that fails on this machine stays in the list, with
its reason.
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.circumstances import circumstances
from lartpc_ds.advise.short_runs.short_run import Program, Samples, ShortRun, by_figure, prepared, shortened, take_turns
from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import AskedConfig, precision
from lartpc_ds.config.run import MemoryConfig, RunConfig
from lartpc_ds.costs.applied import applied
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.layout import Layout
from lartpc_ds.training.prepare import absolute_paths

__all__ = ["Variant", "bench", "chosen", "ratios", "variants"]

_MICRO_BATCHES_PER_STAGE = 2


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    kind: str
    """Variants of a kind do the same work for an event."""
    program: Program
    candidate: Candidate
    baselines: tuple[str, ...] = ()
    """The names of what a variant of ours is compared with."""


def bench(
    recipe: str, overrides: Sequence[str], *, only: Sequence[str], ranks: int, repeats: int, steps: int
) -> dict[str, Any]:
    """Measure the variants whose names begin with one of `only`, or all: medians, ratios and the samples behind them.

    Raises:
        UserError: the baselines cannot train the recipe, or one of `only` begins no name.
    """
    progress = Console(stderr=True)
    config, ds = recipes.load(recipe, overrides)
    _check(config, ds)
    measured = chosen(variants(config.data.batch, ranks), only)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = shortened(absolute_paths(config, Path.cwd()), steps)
        runs = _short_runs(measured, config, ds, Path(scratch), progress)
        samples = take_turns(runs, repeats, lambda text: progress.print(text, highlight=False), failures=failures)
    return {
        **circumstances("compare", recipe, repeats),
        "ranks": ranks,
        "variants": [_row(variant, samples[variant.name], failures.get(variant.name)) for variant in measured],
        "ratios": ratios(measured, {name: kept for name, kept in samples.items() if name not in failures}),
        "samples": by_figure(samples),
    }


def _check(config: RunConfig, ds: AskedConfig) -> None:
    if ds["optimizer"]["type"] != "AdamW":
        raise UserError(f"optimizer.type = {ds['optimizer']['type']!r}: the baselines of this bench have AdamW only")
    if precision(ds) == "fp16":
        raise UserError(f"train.ds_config = {config.train.ds_config!r}: the baselines have no loss scale; take bf16")
    if config.train.accumulate != 1:
        raise UserError("train.accumulate: this bench sets it itself where a pipeline needs it; leave it at 1")
    if config.memory != MemoryConfig():
        raise UserError("memory: the baselines have no such levers; remove the section's keys")
    if config.train.loss_target is not None or config.train.class_weights != "none":
        raise UserError("train.loss_target, train.class_weights: the baselines have plain cross entropy; remove them")


def variants(batch: int, ranks: int) -> list[Variant]:
    """All variants on so many ranks; each of ours follows its baselines, so that they are measured soon after."""

    def candidate(layout: Layout, zero: int = 0, *, accumulate: int = 1, lean: bool = False) -> Candidate:
        return Candidate(layout, batch, accumulate, zero, memory=MemoryConfig(lean_norm=lean))

    one, tiles, alike = candidate(Layout()), Layout(rows=ranks), "data parallel"
    of_stage = [candidate(Layout(data=ranks), zero) for zero in range(4)]
    piped = candidate(Layout(pipe=ranks), 1, accumulate=_MICRO_BATCHES_PER_STAGE * ranks)
    rows = [
        Variant("plain", "one process", "plain", one),
        Variant("ours_one", "one process", "ours", one, ("plain",)),
        Variant("ours_tiles", "tiles", "ours", candidate(tiles), ("plain",)),
        Variant("ours_tiles_lean", "tiles", "ours", candidate(tiles, lean=True), ("plain",)),
        Variant("ddp", alike, "ddp", of_stage[0]),
        Variant("fsdp2", alike, "fsdp2", of_stage[0]),
    ]
    also = {0: "ddp", 3: "fsdp2"}
    for zero, same in enumerate(of_stage):
        own = f"deepspeed_zero{zero}"
        rows.append(Variant(own, alike, "deepspeed_zero", same))
        rows.append(Variant(f"ours_zero{zero}", alike, "ours", same, (own, *([also[zero]] if zero in also else []))))
    rows.append(Variant("deepspeed_pipe", "pipeline", "deepspeed_pipe", piped))
    rows.append(Variant("ours_pipe", "pipeline", "ours", piped, ("deepspeed_pipe",)))
    return rows


def chosen(all_variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """The variants whose names begin with one of `only`; all of them if that is empty.

    Raises:
        UserError: one of `only` begins no name.
    """
    names = [variant.name for variant in all_variants]
    for name in only:
        if not any(one.startswith(name) for one in names):
            raise UserError(f"--only {name!r}: begins no variant's name; there are {', '.join(names)}")
    return [variant for variant in all_variants if not only or variant.name.startswith(tuple(only))]


def _short_runs(
    measured: Sequence[Variant], config: RunConfig, ds: AskedConfig, scratch: Path, progress: Console
) -> dict[str, ShortRun]:
    """Prepare one run folder for all variants of a candidate, over the same events."""
    if not config.data.files and config.data.target is None:
        config = simulated_events(config, scratch / "simulated.h5", progress)
    candidates = dict.fromkeys(variant.candidate for variant in measured)
    folders = {
        candidate: prepared(*applied(config, ds, candidate), candidate.layout, scratch / f"{number}", progress)
        for number, candidate in enumerate(candidates)
    }
    return {variant.name: ShortRun(folders[variant.candidate], variant.program) for variant in measured}


def _row(variant: Variant, samples: Samples, failure: str | None) -> dict[str, Any]:
    """A variant and its medians, which are None where it has failed."""
    seconds = statistics.median(samples["step_seconds"]) if failure is None else None
    peak_bytes = int(statistics.median(samples["peak_bytes"])) if failure is None else None
    events = variant.candidate.global_batch
    return {
        "name": variant.name,
        "kind": variant.kind,
        "ranks": variant.candidate.layout.world_size,
        "global_batch": events,
        "step_seconds": seconds,
        "events_per_second": None if seconds is None else events / seconds,
        "peak_bytes": peak_bytes,
        "failure": failure,
    }


def ratios(measured: Sequence[Variant], samples: Mapping[str, Samples]) -> list[dict[str, Any]]:
    """The time per event and the memory of the fullest rank of each variant of ours, relative to each baseline.

    A pair of which one was not measured, or has failed and so has no samples, is left out.
    """
    by_name = {variant.name: variant for variant in measured}
    pairs = [(by_name[name], by_name.get(other)) for name in by_name for other in by_name[name].baselines]
    return [
        _ratio(ours, theirs, samples[ours.name], samples[theirs.name])
        for ours, theirs in pairs
        if theirs is not None and ours.name in samples and theirs.name in samples
    ]


def _ratio(ours: Variant, theirs: Variant, own: Samples, other: Samples) -> dict[str, Any]:
    steps = zip(own["step_seconds"], other["step_seconds"], strict=True)
    steps_per_event = theirs.candidate.global_batch / ours.candidate.global_batch
    return {
        "name": ours.name,
        "baseline": theirs.name,
        "time_ratio": steps_per_event * statistics.median(a / b for a, b in steps),
        "memory_ratio": statistics.median(own["peak_bytes"]) / statistics.median(other["peak_bytes"]),
    }
