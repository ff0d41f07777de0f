"""Candidates in order, by what is known of them so far: what to trace next, and what to recommend at the end."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lartpc_ds.advise.search.candidates import simplicity
from lartpc_ds.costs.problem import Candidate, Cost, Problem
from lartpc_ds.layout import Layout

__all__ = ["Entry", "Ranking", "Row", "front"]

_NEAR = 0.97
"""Of the fastest: what is as fast as that is chosen by simplicity."""
_GRAIN = 0.9
"""A point of the Pareto front needs at most so much of the memory of the next faster one."""
_SLOWEST = 0.25
"""Of the fastest: what is slower is on no front, however small; its devices would do more alone."""
_FRONT = 8
"""Points of it, at most."""


@dataclass(frozen=True)
class Row:
    """A candidate and what is known of it."""

    candidate: Candidate
    cost: Cost
    fits: bool
    exact: bool
    """Traced; otherwise guessed from what was."""
    pareto: bool
    """None that fits is as fast and much smaller."""


@dataclass(eq=False)
class Entry:
    """A candidate while it is looked at."""

    candidate: Candidate
    cost: Cost
    simplicity: tuple[int, ...]
    exact: bool = False
    bytes: int = 0
    """Of a rank."""
    order: tuple[float, tuple[int, ...]] = (0.0, ())
    """Best first: by speed, and of equals the simplest."""

    def __post_init__(self) -> None:
        self.take(self.cost)

    def take(self, cost: Cost) -> None:
        """Know this of it; sums are kept, because thousands are compared again and again."""
        self.cost, self.bytes = cost, cost.memory.total
        self.order = -cost.events_per_second, self.simplicity


def front(entries: Iterable[Entry]) -> list[Entry]:
    """The fastest, then ever smaller ones, each the fastest of its size."""
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
        """One more."""
        entry = Entry(candidate, self._guess(candidate), simplicity(candidate, self._problem))
        self._entries.append(entry)
        return entry

    def drop(self, which: Callable[[Candidate], bool]) -> None:
        """Forget those that cannot run."""
        self._entries = [entry for entry in self._entries if entry.exact or not which(entry.candidate)]

    def settle(self, entry: Entry, cost: Cost, concerns: Callable[[Candidate], bool]) -> None:
        """It was traced: guess those anew that it concerns."""
        entry.take(cost)
        entry.exact = True
        for other in self._entries:
            if not other.exact and concerns(other.candidate):
                other.take(self._guess(other.candidate))

    def next_to_trace(self, hurried: bool, is_cheap: Callable[[Candidate], bool]) -> Entry | None:
        """What looks best and is only a guess; None where all that matters is traced.

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
        """What needs least memory."""
        return min(self._entries, key=lambda entry: (entry.bytes, entry.order), default=None)

    def best(self) -> Entry | None:
        """What to recommend: of all that is traced and fits."""
        fitting = [entry for entry in self._fitting(self._entries) if entry.exact]
        return _simplest_near(fitting) if fitting else None

    def rows(self) -> list[Row]:
        """What was traced, and of every other layout its best guess; best first."""
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
