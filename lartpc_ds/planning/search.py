"""Which ways to run a problem there are, and which is best: guess all, trace the best, learn, and guess again.

A trace takes about a second and there are thousands of candidates. So each is guessed, the one that looks best is
traced, what the trace says corrects the guesses that are like it, and so on until what is recommended, and the Pareto
front, are traced. Rejected: one axis after the other, because what an axis is worth depends on all others: tiles pay
only where the memory is short, and levers make it long.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lartpc_ds.config import MemoryConfig
from lartpc_ds.errors import UserError
from lartpc_ds.planning.candidates import Choices, choices
from lartpc_ds.planning.hardware import Hardware
from lartpc_ds.planning.problem import Candidate, Cost, Problem
from lartpc_ds.planning.ranking import Entry, Ranking, Row
from lartpc_ds.planning.stage_split import Stages
from lartpc_ds.planning.surrogate import PLAIN, References, Surrogate, references, with_halves

__all__ = ["HEADROOM", "CostOf", "Plan", "Row", "limit_bytes", "search"]

CostOf = Callable[[Problem, Candidate, Hardware, int], Cost]
"""`planning.rank_cost.cost`, or what stands for it."""

_MORE_DEVICES = (2, 4, 8, 16, 32, 64)
_TRIES = 2
HEADROOM = 0.05
"""Of a device's memory that a plan leaves free: what the prediction may be off, and what an allocator cannot use."""


@dataclass(frozen=True)
class Plan:
    """What a search found, best first: what is recommended, then by events/s; what does not fit by its memory."""

    rows: list[Row]
    recommended: Row | None
    """Traced, and within the memory; None where nothing fits."""
    refused: list[str]
    """What is not offered, and why, a sentence each."""
    memory_bytes: int
    """Of a device."""
    limit_bytes: int
    """That a rank may use of its device's memory."""
    whole: Cost
    """Of a rank that has whole events, one a micro-batch, without levers."""
    wider: Row | None = None
    """Where nothing fits: what would on more devices; None if no number of them was found."""


def limit_bytes(hardware: Hardware, memory_bytes: int) -> int:
    """What a rank may use of a device of `memory_bytes`."""
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
    budget_seconds: float = 30.0,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The best ways to run `problem` on so many devices.

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
    ranks = min(ranks_per_node, devices)
    offered = choices(problem, hardware, devices, ranks_per_node, global_batch)
    say("tracing a whole event, its halves and each lever")

    def trace(candidate: Candidate) -> Cost:
        return cost(problem, candidate, hardware, ranks_per_node)

    base = references(trace, devices, _reference_levers(offered))
    stages = Stages(problem, hardware, ranks, limit)
    surrogate = Surrogate(base, hardware, ranks_per_node, stages.split)
    ranking = Ranking(problem, limit, _possible(offered, base), surrogate.guess)
    loop = _Loop(ranking, surrogate, lambda one: trace(stages.named(one)), say)
    loop.trace_a_pipeline()
    loop.trace_the_best(until)
    loop.vary_the_best(hardware)
    rows = [replace(row, candidate=stages.named(row.candidate)) for row in ranking.rows()]
    recommended = rows[0] if rows and rows[0].fits and rows[0].exact else None
    refused = [*offered.refused, *_sentences(base.refused), *loop.refused]
    plan = Plan(rows, recommended, refused, memory_bytes, limit, base.whole[PLAIN])
    if recommended is not None:
        return plan
    say("nothing fits; looking at more devices")
    if base.rows is None and "tiles" not in base.refused:
        base = with_halves(base, trace, 2 * devices)
    surrogate.base = base
    return replace(plan, wider=_wider(problem, hardware, devices, ranks_per_node, limit, surrogate, loop))


def _wider(
    problem: Problem,
    hardware: Hardware,
    devices: int,
    ranks_per_node: int,
    limit: int,
    surrogate: Surrogate,
    loop: "_Loop",
) -> Row | None:
    """The fewest devices, of a few numbers, on which the smallest way to run fits."""
    for factor in _MORE_DEVICES:
        offered = choices(problem, hardware, factor * devices, ranks_per_node)
        small = Ranking(problem, limit, _possible(offered, surrogate.base), surrogate.guess).smallest(_TRIES)
        for entry in small:
            cost = loop.traced(entry.candidate) if entry.bytes <= limit else None
            if cost is not None and cost.memory.total <= limit:
                return Row(entry.candidate, cost, True, True, False)
    return None


def _reference_levers(offered: Choices) -> list[MemoryConfig]:
    """Of streaming, its fewest and its most strips."""
    levers = list(dict.fromkeys(one.memory for one in offered.candidates))
    streamed = sorted((one for one in levers if one.stream_strips > 1), key=lambda one: one.stream_strips)
    return [one for one in levers if one.stream_strips == 1 or one in (streamed[0], streamed[-1])]


def _possible(offered: Choices, base: References) -> list[Candidate]:
    """Without the axes that the network itself refuses."""
    return [
        one
        for one in offered.candidates
        if (one.layout.tiles == 1 or base.rows is not None)
        and ("streaming" not in base.refused if one.memory.stream_strips > 1 else one.memory in base.whole)
    ]


def _sentences(refused: dict[str, str]) -> list[str]:
    plural = {"tiles", "lean norms"}
    return [f"{axis} {'are' if axis in plural else 'is'} not offered: {why}" for axis, why in refused.items()]


class _Loop:
    """Traces one candidate after the other; `refused` says which the network could not run."""

    def __init__(
        self, ranking: Ranking, surrogate: Surrogate, trace: Callable[[Candidate], Cost], say: Callable[[str], None]
    ) -> None:
        self._ranking, self._surrogate, self._trace, self._say = ranking, surrogate, trace, say
        self.refused: list[str] = []

    def trace_a_pipeline(self) -> None:
        """Once, because what the profile of blocks says of stages is the coarsest guess."""
        entry = self._ranking.first_with_stages()
        if entry is not None:
            self._trace_entry(entry, also=lambda other: other.layout.pipe > 1)

    def trace_the_best(self, until: float) -> None:
        """Until there is nothing better to trace, or the time is up and something traced can be recommended."""
        while (entry := self._ranking.next_to_trace(hurried=time.monotonic() > until)) is not None:
            self._say(f"tracing {entry.candidate.layout}, batch {entry.candidate.batch}, ZeRO-{entry.candidate.zero}")
            self._trace_entry(entry)

    def _trace_entry(self, entry: Entry, also: Callable[[Candidate], bool] = lambda other: False) -> None:
        traced = entry.candidate
        cost = self.traced(traced)
        if cost is None:
            self._ranking.drop(lambda other: self._surrogate.alike(other, traced))
            return
        self._surrogate.learn(traced, cost)
        self._ranking.settle(entry, cost, lambda other: self._surrogate.concerns(traced, other) or also(other))

    def traced(self, candidate: Candidate) -> Cost | None:
        """What it takes; None if the network cannot run so, which is noted once for each reason."""
        try:
            return self._trace(candidate)
        except UserError as error:
            if not any(str(error) in told for told in self.refused):
                self.refused.append(f"{candidate.layout} is not offered: {error}")
            return None

    def vary_the_best(self, hardware: Hardware) -> None:
        """What matters little is tried on the best one only."""
        best = self._ranking.best()
        if best is None:
            return
        candidate = best.candidate
        variants = []
        if candidate.layout.tiles > 1:
            points = ("auto", "never")
            variants += [replace(candidate, gather_at=one) for one in points if one != candidate.gather_at]
            variants += [replace(candidate, overlap=not candidate.overlap)] if hardware.device == "cpu" else []
        if candidate.layout.pipe > 1:
            variants += [replace(candidate, cuts="uniform")]
        for variant in variants:
            self._trace_entry(self._ranking.add(variant))
