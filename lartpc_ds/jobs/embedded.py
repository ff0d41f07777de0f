"""The embedded default: a run without files simulates its own events into its run folder."""

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.simulation.generate import ANYWHERE, Aim, SimulationSummary, simulate_file
from lartpc_ds.training.prepare import with_files

__all__ = ["simulate_with_progress", "simulated_events"]


def simulated_events(config: RunConfig, out: Path, console: Console) -> RunConfig:
    """Simulate what `data.simulate` says into `out`; the same run, reading that file."""
    data = config.data
    if data.labels != "particle" or isinstance(data.classes, dict) or data.detector == "auto":
        raise UserError(
            "data.files: is empty. Give files, for example --set 'data.files=[\"events/*.h5\"]'; the simulation that "
            'stands in otherwise makes single particles only: it needs labels = "particle", classes as a list of '
            "species and a detector by name"
        )
    simulate_with_progress(
        out,
        data.detector,
        num_events=data.simulate.events,
        classes=data.classes,
        momentum_gev=data.simulate.momentum,
        seed=data.simulate.seed,
        workers=len(os.sched_getaffinity(0)),
        aim=Aim(data.simulate.vertex, data.simulate.angle),
        console=console,
    )
    return with_files(config, (str(out),))


def simulate_with_progress(
    out: Path,
    detector: str,
    *,
    num_events: int,
    classes: tuple[str, ...],
    momentum_gev: tuple[float, float],
    seed: int,
    workers: int,
    console: Console,
    aim: Aim = ANYWHERE,
) -> SimulationSummary:
    """`simulate_file` with a bar that shows rate and time left."""
    rate = TextColumn("{task.speed:.1f} events/s" if console.is_terminal else "")
    columns = (TextColumn("simulating"), BarColumn(bar_width=20), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating", total=num_events)
        summary = simulate_file(
            out,
            detector,
            num_events=num_events,
            classes=classes,
            momentum_gev=momentum_gev,
            seed=seed,
            workers=workers,
            aim=aim,
            on_event=lambda count: bar.update(task, completed=count),
        )
    console.print(
        f"simulated {summary.events} {detector} events in {summary.seconds:.1f} s "
        f"({summary.events_per_second:.1f} events/s): {out}",
        soft_wrap=True,
    )
    return summary
