"""The events of a run without files, which are simulated into its run folder."""

import os
from pathlib import Path

from rich.console import Console

from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.progress_bar import event_bar
from lartpc_ds.simulation.generate import ANYWHERE, Aim, SimulationSummary, simulate_file
from lartpc_ds.training.prepare import with_files

__all__ = ["simulate_with_progress", "simulated_events"]


def simulated_events(config: RunConfig, out: Path, console: Console) -> RunConfig:
    """Simulate the events of `data.simulate` into `out`; returns the configuration with that file in it."""
    data = config.data
    if data.labels != "particle" or isinstance(data.classes, dict) or data.detector == "auto":
        raise UserError(
            "data.files: is empty. Give files, for example --set 'data.files=[\"events/*.h5\"]'; the events that are "
            'simulated otherwise are single particles, for which data needs labels = "particle", classes as a list of '
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
    """Call `simulate_file`, and show a bar with its rate and the time that is left."""
    with event_bar(console, "simulating", num_events) as show:
        summary = simulate_file(
            out,
            detector,
            num_events=num_events,
            classes=classes,
            momentum_gev=momentum_gev,
            seed=seed,
            workers=workers,
            aim=aim,
            on_event=show,
        )
    console.print(
        f"simulated {summary.events} {detector} events in {summary.seconds:.1f} s "
        f"({summary.events_per_second:.1f} events/s): {out}",
        soft_wrap=True,
    )
    return summary
