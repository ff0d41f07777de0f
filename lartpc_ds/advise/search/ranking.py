"""The ranking puts candidates in order by what is known so far: what to trace next, and what to recommend."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lartpc_ds.advise.search.candidates import simplicity
from lartpc_ds.costs.problem import Candidate, Cost, Problem
from lartpc_ds.layout import Layout

__all__ = ["Entry", "Ranking", "Row", "front"]

_NEAR = 0.97
"""A share of the fastest speed: what is as fast as that is chosen by simplicity."""
_GRAIN = 0.9
"""A point of the Pareto front needs at most so much of the memory of the next faster one."""
_SLOWEST = 0.25
"""A share of the fastest speed: what is slower is on no front, however small; its devices would do more alone."""
_FRONT = 8
"""The most points that a front has."""


@dataclass(frozen=True)
class Row:
    """A candidate and what is known of it."""

    candidate: Candidate
    cost: Cost
    fits: bool
    exact: bool
    """Was the candidate traced? Otherwise its cost is guessed from what was."""
    pareto: bool
    """Is it on the Pareto front: is none that fits as fast and much smaller?"""


@dataclass(eq=False)
class Entry:
    """A candidate while it is looked at."""

    candidate: Candidate
    cost: Cost
    simplicity: tuple[int, ...]
    exact: bool = False
    bytes: int = 0
    """The peak memory of a rank."""
    order: tuple[float, tuple[int, ...]] = (0.0, ())
    """The order of candidates, best first: by speed, and of equals the simplest."""

    def __post_init__(self) -> None:
        self.take(self.cost)

    def take(self, cost: Cost) -> None:
        """Take a new cost; sums are kept, because thousands of candidates are compared again and again."""
        self.cost, self.bytes = cost, cost.memory.total
        self.order = -cost.events_per_second, self.simplicity


def front(entries: Iterable[Entry]) -> list[Entry]:
    """The Pareto front: the fastest, and then ever smaller ones, each the fastest of its size."""
    points: list[Entry] = []
    for entry in sorted(entries, key=lambda one: one.order):
        if points and entry.order[0] > _SLOWEST * points[0].order[0]:
            break
        if not points or entry.bytes <= _GRAIN * points[-1].bytes:
            points.append(entry)
    return points[:_FRONT]


def _simplest_near(entries: Sequence[Entry]) -> Entry:
    slowest = _NEAR * min(entry.order for entry in entries)[0]
    near = [entry for entry in entries if entry.order[0] <= slowest]
    return min(near, key=lambda entry: (entry.simplicity, entry.order))


class Ranking:
    """All candidates, each with a guess until it is traced."""

    def __init__(
        self, problem: Problem, limit_bytes: int, candidates: Iterable[Candidate], guess: Callable[[Candidate], Cost]
    ) -> None:
        self._problem, self._limit, self._guess = problem, limit_bytes, guess
        self._entries: list[Entry] = []
        for candidate in candidates:
            self.add(candidate)

    def add(self, candidate: Candidate) -> Entry:
        """Add a candidate with its guess."""
        entry = Entry(candidate, self._guess(candidate), simplicity(candidate, self._problem))
        self._entries.append(entry)
        return entry

    def drop(self, which: Callable[[Candidate], bool]) -> None:
        """Forget the candidates that cannot run."""
        self._entries = [entry for entry in self._entries if entry.exact or not which(entry.candidate)]

    def settle(self, entry: Entry, cost: Cost, concerns: Callable[[Candidate], bool]) -> None:
        """Note what a trace has found, and guess anew the candidates that it concerns."""
        entry.take(cost)
        entry.exact = True
        for other in self._entries:
            if not other.exact and concerns(other.candidate):
                other.take(self._guess(other.candidate))

    def next_to_trace(self, hurried: bool, is_cheap: Callable[[Candidate], bool]) -> Entry | None:
        """The best entry that is only a guess; None where all that matters is traced.

        Hurried, what is not cheap is traced only until something fits, or anything is traced where nothing does.
        """
        fitting = self._fitting(self._entries)
        if not fitting:
            smallest = self.smallest()
            enough = smallest is None or smallest.exact or (hurried and any(entry.exact for entry in self._entries))
            return None if enough else smallest
        if hurried and any(entry.exact for entry in fitting):
            fitting = [entry for entry in fitting if entry.exact or is_cheap(entry.candidate)]
        wanted = [_simplest_near(fitting), min(fitting, key=lambda entry: entry.order), *front(fitting)]
        return next((entry for entry in wanted if not entry.exact), None)

    def smallest(self) -> Entry | None:
        """The entry that needs least memory."""
        return min(self._entries, key=lambda entry: (entry.bytes, entry.order), default=None)

    def best(self) -> Entry | None:
        """The entry to recommend, of all that are traced and fit."""
        fitting = [entry for entry in self._fitting(self._entries) if entry.exact]
        return _simplest_near(fitting) if fitting else None

    def rows(self) -> list[Row]:
        """All that was traced, and the best guess of every other layout; best first."""
        exact = [entry for entry in self._entries if entry.exact]
        best, points = self.best(), {id(entry) for entry in front(self._fitting(exact))}
        shown = {id(entry): entry for entry in exact}
        layouts: dict[Layout, Entry] = {}
        for entry in sorted(self._fitting(self._entries), key=lambda one: (not one.exact, one.order)):
            layouts.setdefault(entry.candidate.layout, entry)
        shown |= {id(entry): entry for entry in layouts.values()}

        def order(entry: Entry) -> tuple[bool, bool, float, tuple[int, ...]]:
            fits = entry.bytes <= self._limit
            return entry is not best, not fits, entry.order[0] if fits else entry.bytes, entry.simplicity

        return [
            Row(entry.candidate, entry.cost, entry.bytes <= self._limit, entry.exact, id(entry) in points)
            for entry in sorted(shown.values(), key=order)
        ]

    def _fitting(self, entries: Iterable[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.bytes <= self._limit]
