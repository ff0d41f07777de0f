"""The table of a run's events, after one look at each of them, with a bar; and what there is to say about them."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lartpc_ds.config.ds_config import precision
from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.source import Source
from lartpc_ds.data.survey import ABSURD, LARGEST_HALF
from lartpc_ds.training.sources import index_events, survey_events

__all__ = ["print_findings", "surveyed_index"]


def surveyed_index(
    config: RunConfig, ds: Mapping[str, Any], source: Source, console: Console
) -> tuple[EventIndex, tuple[str, ...]]:
    """The table, and sentences for the user; UserError as `survey_events` and `index_events`."""
    limit = LARGEST_HALF if precision(ds) == "fp16" else ABSURD
    columns = (TextColumn("looking at every event"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=len(source))
        look, said = survey_events(config, source, limit, lambda count: bar.update(task, completed=count))
    return index_events(config, source, look), tuple(said)


def print_findings(console: Console, findings: tuple[str, ...]) -> None:
    """A line each."""
    for line in findings:
        console.print(f"events: {line}", markup=False, highlight=False, soft_wrap=True)
