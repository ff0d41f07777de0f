"""What every source of hosts shares: an allocation, and how names that come with counts become its hosts."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import MOST_SLOTS, Host

__all__ = ["SLOTS_FIX", "Allocation", "clipped", "equal", "hosts_of", "needed", "summed"]

SLOTS_FIX = "give the devices of a host with --slots N"


@dataclass(frozen=True, slots=True)
class Allocation:
    """Hosts in the order of their ranks, and what says so, a sentence each."""

    hosts: tuple[Host, ...]
    provenance: tuple[str, ...]


def needed(environment: Mapping[str, str], variable: str, system: str, *others: str) -> str:
    """The value of a variable that `system` sets in its jobs; `others` were looked for as well.

    Raises:
        UserError: it is not set, or empty.
    """
    if not environment.get(variable, "").strip():
        looked_for = " or ".join((*others, variable))
        raise UserError(
            f"{looked_for}: not set, or empty, so this is no job of {system}; run it inside one, "
            "or give NODES such as gpu[01-04,07]:4"
        )
    return environment[variable].strip()


def summed(counted: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Slots of each host, in order of first mention; the counts of repeated names add up."""
    counts: dict[str, int] = {}
    for name, count in _one_spelling(counted):
        counts[name] = counts.get(name, 0) + count
    return counts


def equal(counted: Iterable[tuple[str, int]], source: str) -> dict[str, int]:
    """Slots of each host, in order of first mention; a repeated name changes nothing.

    Raises:
        UserError: a name comes with two counts.
    """
    counts: dict[str, int] = {}
    for name, count in _one_spelling(counted):
        if counts.setdefault(name, count) != count:
            raise UserError(f"{source}: {name!r} has {counts[name]} slots and {count}; name it once, or with one count")
    return counts


def _one_spelling(counted: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    # names do not differ by case, and a hostfile may not name a host twice
    first: dict[str, str] = {}
    return ((first.setdefault(name.lower(), name), count) for name, count in counted)


def hosts_of(counts: Mapping[str, int], source: str) -> tuple[Host, ...]:
    """Hosts that offer so many slots each.

    Raises:
        UserError: a host has no slot, or more than any machine.
    """
    for name, count in counts.items():
        if not 1 <= count <= MOST_SLOTS:
            raise UserError(
                f"{source}: {count} slots on {name}; a host of a job has 1 to {MOST_SLOTS}: leave it out, or "
                f"{SLOTS_FIX}"
            )
    return tuple(Host(name, tuple(range(count))) for name, count in counts.items())


def clipped(text: str) -> str:
    """A value in one line that a person can read: a variable may name thousands of hosts."""
    line = re.sub(r"\s+", " ", text)
    return line if len(line) <= 300 else f"{line[:297]}..."
