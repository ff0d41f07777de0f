"""Which ways to run a problem there are, and which is best."""

from collections.abc import Callable
from dataclasses import dataclass

from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.planning.applied import as_written
from lartpc_ds.planning.hardware import Hardware
from lartpc_ds.planning.problem import Candidate, Cost, Problem

__all__ = ["CostOf", "Plan", "Row", "search"]

CostOf = Callable[[Problem, Candidate, Hardware, int], Cost]
"""`planning.rank_cost.cost`, or what stands for it."""


@dataclass(frozen=True)
class Row:
    """A candidate and what is known of it."""

    candidate: Candidate
    cost: Cost
    fits: bool
    exact: bool
    """Traced; otherwise estimated from what was."""
    pareto: bool
    """No other one that fits is faster and smaller."""


@dataclass(frozen=True)
class Plan:
    """What a search found, best first."""

    rows: list[Row]
    recommended: Row | None
    """Traced, and within the memory; None where nothing fits."""
    refused: list[str]
    """What is not offered, and why, a sentence each."""


def search(
    problem: Problem,
    hardware: Hardware,
    devices: int,
    memory_bytes: int,
    ranks_per_node: int,
    *,
    cost: CostOf,
    global_batch: int | None = None,
    budget_seconds: float = 40.0,
) -> Plan:
    """The best ways to run `problem` on so many devices.

    Args:
        problem: the run.
        hardware: the machine.
        devices: of the whole job.
        memory_bytes: of one device.
        ranks_per_node: devices of one machine.
        cost: what a candidate takes, exactly.
        global_batch: events of an optimizer step; None: as many as are fast.
        budget_seconds: after which no more candidates are traced.

    Raises:
        UserError: no way to share the work among so many devices can run.
    """
    rows = []
    for layout in (Layout(data=devices), Layout(rows=devices), Layout(cols=devices)):
        candidate = as_written(problem.config, problem.ds, layout)
        try:
            found = cost(problem, candidate, hardware, ranks_per_node)
        except UserError:
            continue
        rows.append(Row(candidate, found, found.memory.total <= memory_bytes, True, False))
    rows.sort(key=lambda row: (not row.fits, -row.cost.events_per_second))
    return Plan(rows, next((row for row in rows if row.fits), None), [])
