"""Measures a list of layouts for `lartpc-ds bench planner`: real runs of this machine, on the same events.

Each layout has a run folder of its own, prepared as `lartpc-ds train` does it from what the planner's candidate says,
so the bench measures what a user gets who takes the planner's advice. They take turns, first to last and back.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds.advise.bench.measure import PINNED, WARM_UP_STEPS, measure
from lartpc_ds.advise.bench.planner_layouts import RECIPE, MeasuredLayout
from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.jobs.supervise.command import check_devices

__all__ = ["Applied", "Samples", "loaded", "measure_layouts"]

Samples = dict[str, list[float]]
"""`step_seconds` and `peak_bytes`, one each a repeat."""
Applied = Callable[[RunConfig, Mapping[str, Any], Candidate], tuple[RunConfig, AskedConfig]]
"""The configurations of a run, once a candidate says how it is run."""

_EVENTS = 24


def loaded(layout: MeasuredLayout, overrides: Sequence[str] = ()) -> tuple[RunConfig, AskedConfig]:
    """The configurations of a layout, before its candidate is applied."""
    everything = ["data.split={train=1.0,validation=0.0}", f"data.simulate.events={_EVENTS}", "train.epochs=1e6"]
    return recipes.load(RECIPE, [*everything, *layout.overrides, *overrides])


def measure_layouts(
    layouts: Sequence[MeasuredLayout], applied: Applied, *, repeats: int, steps: int, progress: Console
) -> dict[str, Samples]:
    """The samples of every layout, by its name.

    Args:
        layouts: what to measure.
        applied: makes a candidate's configurations.
        repeats: fresh processes a layout, for times and again for peaks.
        steps: timed ones of a process; their median is a sample.
        progress: where lines of progress go.
    """
    samples: dict[str, Samples] = {layout.name: {"step_seconds": [], "peak_bytes": []} for layout in layouts}
    with tempfile.TemporaryDirectory() as scratch:
        folders = _prepared(layouts, applied, steps, Path(scratch), progress)
        for repeat in range(repeats):
            for layout in layouts if repeat % 2 == 0 else reversed(layouts):
                folder, ranks = folders[layout.name], layout.candidate.layout.world_size
                lines = measure("ours", folder, ranks, {})[WARM_UP_STEPS:]
                peak_bytes = measure("ours", folder, ranks, PINNED)[-1]["peak_bytes"]
                step_seconds = statistics.median(line["step_seconds"] for line in lines)
                samples[layout.name]["step_seconds"].append(step_seconds)
                samples[layout.name]["peak_bytes"].append(peak_bytes)
                progress.print(
                    f"{repeat + 1}/{repeats} {layout.name}: {step_seconds:.3f} s a step, peak "
                    f"{peak_bytes / 2**20:.0f} MiB a rank",
                    highlight=False,
                )
    return samples


def _prepared(
    layouts: Sequence[MeasuredLayout], applied: Applied, steps: int, scratch: Path, progress: Console
) -> dict[str, RunFolder]:
    """A run folder for each layout, all on the same simulated events."""
    files: tuple[str, ...] = ()
    folders = {}
    for number, layout in enumerate(layouts):
        config, ds = loaded(layout, [f"train.max_steps={WARM_UP_STEPS + steps}"])
        check_devices(layout.candidate.layout.world_size, ds)
        files = files or simulated_events(config, scratch / "simulated.h5", progress).data.files
        data = config.data.model_copy(update={"files": files})
        config, ds = applied(config.model_copy(update={"data": data}), ds, layout.candidate)
        folder = folders[layout.name] = RunFolder(scratch / f"{number}")
        folder.claim()
        prepare_run(config, ds, layout.candidate.layout, folder, progress)
    return folders
