"""The table of a run's events, after one look at each of them, with a bar; and what there is to say about them."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from lartpc_ds.config.ds_config import precision
from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.absurd import ABSURD, LARGEST_HALF
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.source import Source
from lartpc_ds.jobs.progress_bar import event_bar
from lartpc_ds.report.say import say
from lartpc_ds.training.sources import index_events, survey_events

__all__ = ["print_findings", "surveyed_index"]


def surveyed_index(
    config: RunConfig, ds: Mapping[str, Any], source: Source, console: Console
) -> tuple[EventIndex, tuple[str, ...]]:
    """The table, and sentences for the user; UserError as `survey_events` and `index_events`."""
    limit = LARGEST_HALF if precision(ds) == "fp16" else ABSURD
    with event_bar(console, "looking at every event", len(source)) as show:
        look, said = survey_events(config, source, limit, show)
    return index_events(config, source, look), tuple(said)


def print_findings(console: Console, findings: tuple[str, ...]) -> None:
    """A line each."""
    for line in findings:
        say(console, f"events: {line}")
