"""The layouts of `lartpc-ds bench planner` are measured by real runs on this machine, on the same events.

Each layout has a run folder of its own, prepared as `lartpc-ds train` does it from what the planner's candidate says,
so the bench measures what a user gets who takes the planner's advice. They take turns, first to last and back.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lartpc_ds.advise.bench.planner_layouts import RECIPE, MeasuredLayout
from lartpc_ds.advise.short_runs.short_run import Samples, ShortRun, prepared, shortened, take_turns
from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.applied import applied
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.training.prepare import with_files

__all__ = ["loaded", "measure_layouts"]

_EVENTS = 24


def loaded(layout: MeasuredLayout) -> tuple[RunConfig, AskedConfig]:
    """The configurations of a layout, before its candidate is applied."""
    return recipes.load(RECIPE, [f"data.simulate.events={_EVENTS}", *layout.overrides])


def measure_layouts(
    layouts: Sequence[MeasuredLayout], *, repeats: int, steps: int, progress: Console
) -> dict[str, Samples]:
    """Measure every layout; its samples by its name.

    Args:
        layouts: what to measure.
        repeats: fresh processes per layout, for times and again for peaks.
        steps: how many of a process's steps are timed; their median is a sample.
        progress: where lines of progress go.
    """
    files: tuple[str, ...] = ()
    runs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, layout in enumerate(layouts):
            config, ds = loaded(layout)
            files = files or simulated_events(config, Path(scratch) / "simulated.h5", progress).data.files
            config, ds = applied(shortened(with_files(config, files), steps), ds, layout.candidate)
            folder = prepared(config, ds, layout.candidate.layout, Path(scratch) / f"{number}", progress)
            runs[layout.name] = ShortRun(folder)
        return take_turns(runs, repeats, lambda text: progress.print(text, highlight=False))
