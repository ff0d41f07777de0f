"""The search finds the best way to run a problem: it guesses all, traces the best, learns, and guesses again.

A trace takes about a second and there are thousands of candidates. So each is guessed, the one that looks best is
traced, what the trace says corrects the guesses that are like it, and so on until what is recommended, and the Pareto
front, are traced. Rejected: one axis after the other, because what an axis is worth depends on all others: tiles pay
only where the memory is short, and levers make it long.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from lartpc_ds.advise.search.candidates import Choices, choices, grids
from lartpc_ds.advise.search.ranking import Entry, Ranking, Row
from lartpc_ds.advise.search.surrogate import PLAIN, References, Surrogate, references
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Cost, Problem
from lartpc_ds.costs.stage_split import Stages
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = ["BUDGET_SECONDS", "HEADROOM", "CostOf", "Plan", "Row", "limit_bytes", "search"]

CostOf = Callable[[Problem, Candidate, Hardware, int], Cost]
"""Predicts what a candidate costs: `costs.rank_cost.cost`, or what stands for it."""

_MORE_DEVICES = (2, 4, 8, 16, 32, 64)
BUDGET_SECONDS = 25.0
"""How long tracing may take: with what comes before, and with the last trace, well below a minute."""
_OTHER_GRIDS = 2
HEADROOM = 0.05
"""The share of a device's memory that a plan leaves free.

The prediction may be off by some of it, and an allocator cannot use some of it."""


@dataclass(frozen=True)
class Plan:
    """What a search found, best first: what is recommended, then by events/s; what does not fit by its memory."""

    rows: list[Row]
    recommended: Row | None
    """Traced, and within the memory; None where nothing fits."""
    refused: list[str]
    """What is not offered, and why, a sentence each."""
    memory_bytes: int
    """The memory of a device."""
    limit_bytes: int
    """How much of its device's memory a rank may use."""
    whole: Cost
    """The cost of a rank that has whole events, one per micro-batch, without levers."""
    wider: Row | None = None
    """Where nothing fits: what would on more devices; None if none was found."""


def limit_bytes(hardware: Hardware, memory_bytes: int) -> int:
    """How many bytes a rank may use of a device of `memory_bytes`."""
    return int((memory_bytes - hardware.reserved_bytes) * (1 - HEADROOM))


def search(
    problem: Problem,
    hardware: Hardware,
    devices: int,
    memory_bytes: int,
    ranks_per_node: int,
    *,
    cost: CostOf,
    global_batch: int | None = None,
    budget_seconds: float = BUDGET_SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Find the best ways to run `problem` on so many devices.

    Args:
        problem: the run.
        hardware: the machine.
        devices: of the whole job.
        memory_bytes: of one device.
        ranks_per_node: devices of one machine.
        cost: what a candidate takes, exactly.
        global_batch: events of an optimizer step; None: what comes of data.batch, train.accumulate and the layout.
        budget_seconds: after which only what a recommendation needs is traced.
        say: told what is being done.

    Raises:
        UserError: the network cannot take the images, or no layout has the global batch.
    """
    until = time.monotonic() + budget_seconds
    limit = limit_bytes(hardware, memory_bytes)
    offered = choices(problem, hardware, devices, ranks_per_node, global_batch)
    say("tracing a whole event")

    def trace(candidate: Candidate) -> Cost:
        return cost(problem, candidate, hardware, ranks_per_node)

    base = references(trace, devices, _reference_levers(offered))
    stages = Stages(problem, hardware, min(ranks_per_node, devices), limit)
    surrogate = Surrogate(problem, base, hardware, ranks_per_node, stages.split)
    for memory, known in base.whole.items():
        surrogate.learn(Candidate(Layout(data=devices), memory=memory), known)
    ranking = Ranking(problem, limit, _possible(offered, base), surrogate.guess)
    loop = _Loop(ranking, surrogate, lambda one: trace(stages.named(one)), say)
    loop.trace_the_best(until)
    loop.vary_the_best(problem, hardware, until)
    rows = [replace(row, candidate=stages.named(row.candidate)) for row in ranking.rows()]
    recommended = rows[0] if rows and rows[0].fits and rows[0].exact else None
    refused = [*offered.refused, *base.sentences, *loop.refused]
    plan = Plan(rows, recommended, refused, memory_bytes, limit, base.whole[PLAIN])
    if recommended is None:
        say("nothing fits; looking at more devices")
        more = (choices(problem, hardware, factor * devices, ranks_per_node) for factor in _MORE_DEVICES)
        rankings = (Ranking(problem, limit, _possible(one, base), surrogate.guess) for one in more)
        plan = replace(plan, wider=_wider(rankings, loop, limit, until + budget_seconds))
    return plan


def _wider(rankings: Iterable[Ranking], loop: "_Loop", limit: int, until: float) -> Row | None:
    """The smallest way to run on the fewest devices, a ranking each, on which it fits."""
    for ranking in rankings:
        smallest = ranking.smallest()
        if time.monotonic() > until or smallest is None:
            return None
        cost = loop.traced(smallest.candidate) if smallest.bytes <= limit else None
        if cost is not None and cost.memory.total <= limit:
            return Row(smallest.candidate, cost, True, True, False)
    return None


def _reference_levers(offered: Choices) -> list[MemoryConfig]:
    """The levers that are cheap to trace and that a network may refuse: recomputation, and the fewest strips."""
    levers = list(dict.fromkeys(one.memory for one in offered.candidates))
    streamed = sorted((one for one in levers if one.stream_strips > 1), key=lambda one: one.stream_strips)
    return [one for one in levers if one.stream_strips == 1 and one != PLAIN and not one.lean_norm] + streamed[:1]


def _possible(offered: Choices, base: References) -> list[Candidate]:
    """The candidates without the levers that the network itself refuses."""
    return [
        one
        for one in offered.candidates
        if not ("streaming" in base.refused and one.memory.stream_strips > 1)
        and not ("lit" in base.refused and one.memory.lit_block)
        and not ("recomputation" in base.refused and one.memory.recompute != "none")
    ]


class _Loop:
    """Traces one candidate after the other, and remembers which the network could not run."""

    def __init__(
        self, ranking: Ranking, surrogate: Surrogate, trace: Callable[[Candidate], Cost], say: Callable[[str], None]
    ) -> None:
        self._ranking, self._surrogate, self._trace, self._say = ranking, surrogate, trace, say
        self._reasons: dict[str, list[Layout]] = {}

    def trace_the_best(self, until: float) -> None:
        """Trace until nothing better is left, or the time is up and something traced can be recommended."""
        cheap = self._surrogate.knows
        while (entry := self._ranking.next_to_trace(time.monotonic() > until, cheap)) is not None:
            self._say(f"tracing {entry.candidate.layout}, batch {entry.candidate.batch}, ZeRO-{entry.candidate.zero}")
            self._trace_entry(entry)

    def _trace_entry(self, entry: Entry) -> None:
        traced = entry.candidate
        cost = self.traced(traced)
        if cost is None:
            self._ranking.drop(lambda other: self._refuses(traced, other))
            return
        self._surrogate.learn(traced, cost)
        self._ranking.settle(entry, cost, lambda other: self._surrogate.concerns(traced, other))

    def traced(self, candidate: Candidate) -> Cost | None:
        """Trace a candidate; None if the network cannot run so, which is noted once for each reason."""
        try:
            return self._trace(candidate)
        except UserError as error:
            self._reasons.setdefault(str(error), []).append(candidate.layout)
            return None

    @property
    def refused(self) -> list[str]:
        """A sentence for each reason."""
        return [
            f"{'tiles are' if _means_all_tiles(layouts) else f'{layouts[0]} is'} not offered: {why}"
            for why, layouts in self._reasons.items()
        ]

    def _refuses(self, refused: Candidate, other: Candidate) -> bool:
        """Two grids that are refused for the same reason stand for all."""
        all_tiles = any(refused.layout in layouts and _means_all_tiles(layouts) for layouts in self._reasons.values())
        return self._surrogate.alike(other, refused) or (all_tiles and other.layout.tiles > 1)

    def vary_the_best(self, problem: Problem, hardware: Hardware, until: float) -> None:
        """Try what matters little on the best candidate only, while there is time."""
        best = self._ranking.best()
        for variant in [] if best is None else _variants(best.candidate, problem, hardware):
            if time.monotonic() < until:
                self._trace_entry(self._ranking.add(variant))


def _means_all_tiles(refused: list[Layout]) -> bool:
    return len({(layout.rows, layout.cols) for layout in refused if layout.tiles > 1}) > 1


def _variants(candidate: Candidate, problem: Problem, hardware: Hardware) -> list[Candidate]:
    layout, found = candidate.layout, []
    if layout.tiles > 1:
        _, height, width = problem.image
        other = [grid for grid in grids(layout.tiles, height, width) if grid != (layout.rows, layout.cols)]
        found += [replace(candidate, layout=replace(layout, rows=r, cols=c)) for r, c in other[:_OTHER_GRIDS]]
        found += [replace(candidate, gather_at=one) for one in ("auto", "never") if one != candidate.gather_at]
        found += [replace(candidate, overlap=not candidate.overlap)] if hardware.device == "cpu" else []
    if layout.pipe > 1:
        found += [replace(candidate, cuts="uniform")]
    return found
