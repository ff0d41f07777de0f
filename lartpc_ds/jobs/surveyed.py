"""The table of the events of a run, after each was looked at once, and sentences about what was found."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from lartpc_ds.config.ds_config import DeepSpeedConfig, precision
from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.lit_shares import describe_shares
from lartpc_ds.data.source import Source
from lartpc_ds.data.survey import ABSURD, LARGEST_HALF
from lartpc_ds.exact.memory.lit_plan import LitPlan
from lartpc_ds.jobs.progress_bar import event_bar
from lartpc_ds.report.say import say
from lartpc_ds.training.sources import index_events, survey_events

__all__ = ["print_findings", "surveyed_index"]


def surveyed_index(
    config: RunConfig, ds: DeepSpeedConfig, source: Source, console: Console, lit: LitPlan | None = None
) -> tuple[EventIndex, tuple[str, ...]]:
    """Look at every event; returns the table of events and sentences for the user.

    Where the run computes only what is `lit`, the table has the predicted cost of a step on each event.

    Raises:
        UserError: as `survey_events` and `index_events`.
    """
    limit = LARGEST_HALF if precision(ds) == "fp16" else ABSURD
    with event_bar(console, "looking at every event", len(source)) as show:
        look, sentences = survey_events(config, source, limit, show, None if lit is None else lit.cut)
    index = index_events(config, source, look)
    if lit is None or look is None:
        return index, tuple(sentences)
    used = index.split != ""
    cost = np.array([_cost(lit, row) if mine else 0.0 for row, mine in zip(look.shares, used, strict=True)])
    ids = [who for who, mine in zip(index.ids, used, strict=True) if mine]
    sentences += describe_shares(look.shares[used], lit.maps, lit.cut.patch, ids)
    sentences += [_describe_cost(cost[used]), _describe_memory(lit, look.shares[used], precision(ds))]
    return replace(index, cost=cost), tuple(sentences)


def _cost(lit: LitPlan, shares: NDArray[np.float64]) -> float:
    """The predicted cost of a step on an event with these shares, rounded for the table."""
    return round(lit.cost(shares[1:].tolist()), 6)


def _describe_cost(cost: NDArray[np.float64]) -> str:
    middle, most, largest = np.quantile(cost, (0.5, 0.9, 1))
    return (
        f"a step on the median event is predicted to cost {middle:.2g} of a step on whole maps ({most:.2g} for 90 % of "
        f"the events, {largest:.2g} for the dearest)"
    )


def _describe_memory(lit: LitPlan, shares: NDArray[np.float64], number: str) -> str:
    itemsize = {"fp32": 4, "bf16": 2, "fp16": 2}[number]
    kept = np.array([lit.kept_bytes(row[1:].tolist()) for row in shares]) * itemsize / 4
    whole = sum(block.saved_bytes for block in lit.blocks) * itemsize / 4
    middle, largest, whole = (size / 2**20 for size in (*np.quantile(kept, (0.5, 1)), whole))
    return (
        f"for the backward pass the median event is predicted to keep {middle:.0f} MiB of maps, and the brightest "
        f"{largest:.0f} MiB; whole maps would be {whole:.0f} MiB, all without memory.lean_norm and memory.recompute"
    )


def print_findings(console: Console, findings: tuple[str, ...]) -> None:
    """Print one line per sentence."""
    for line in findings:
        say(console, f"events: {line}")
