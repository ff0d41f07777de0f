"""The table of the events of a run, after each was looked at once, and sentences about what was found."""

from rich.console import Console

from lartpc_ds.config.ds_config import DeepSpeedConfig, precision
from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.source import Source
from lartpc_ds.data.survey import ABSURD, LARGEST_HALF
from lartpc_ds.jobs.progress_bar import event_bar
from lartpc_ds.report.say import say
from lartpc_ds.training.sources import index_events, survey_events

__all__ = ["print_findings", "surveyed_index"]


def surveyed_index(
    config: RunConfig, ds: DeepSpeedConfig, source: Source, console: Console
) -> tuple[EventIndex, tuple[str, ...]]:
    """Look at every event; returns the table of events and sentences for the user.

    Raises:
        UserError: as `survey_events` and `index_events`.
    """
    limit = LARGEST_HALF if precision(ds) == "fp16" else ABSURD
    with event_bar(console, "looking at every event", len(source)) as show:
        look, sentences = survey_events(config, source, limit, show)
    return index_events(config, source, look), tuple(sentences)


def print_findings(console: Console, findings: tuple[str, ...]) -> None:
    """Print one line per sentence."""
    for line in findings:
        say(console, f"events: {line}")
