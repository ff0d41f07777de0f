"""Allocations, and how names of hosts that come with counts become one, for every source of hosts."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import MOST_SLOTS, Host

__all__ = ["SLOTS_FIX", "Allocation", "clipped", "equal", "hosts_of", "needed", "summed"]

SLOTS_FIX = "give the devices of a host with --slots N"


@dataclass(frozen=True, slots=True)
class Allocation:
    """Hosts in the order of their ranks, and sentences about where they come from."""

    hosts: tuple[Host, ...]
    provenance: tuple[str, ...]


def needed(environment: Mapping[str, str], variable: str, system: str, *others: str) -> str:
    """The value of a variable that `system` sets in its jobs; the message also names `others`.

    Raises:
        UserError: the variable is not set, or is empty.
    """
    if not environment.get(variable, "").strip():
        looked_for = " or ".join((*others, variable))
        raise UserError(
            f"{looked_for}: not set, or empty, so this is no job of {system}; run it inside one, "
            "or give NODES such as gpu[01-04,07]:4"
        )
    return environment[variable].strip()


def summed(counted: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The slots of each host, in the order of first mention; the counts of repeated names are added."""
    counts: dict[str, int] = {}
    for name, count in _one_spelling(counted):
        counts[name] = counts.get(name, 0) + count
    return counts


def equal(counted: Iterable[tuple[str, int]], source: str) -> dict[str, int]:
    """The slots of each host, in the order of first mention; a repeated name changes nothing.

    Raises:
        UserError: a name comes with two counts.
    """
    counts: dict[str, int] = {}
    for name, count in _one_spelling(counted):
        if counts.setdefault(name, count) != count:
            raise UserError(f"{source}: {name!r} has {counts[name]} slots and {count}; name it once, or with one count")
    return counts


def _one_spelling(counted: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    # upper and lower case are the same in names of hosts, and a hostfile may not name a host twice
    first: dict[str, str] = {}
    return ((first.setdefault(name.lower(), name), count) for name, count in counted)


def hosts_of(counts: Mapping[str, int], source: str) -> tuple[Host, ...]:
    """The hosts with these numbers of slots.

    Raises:
        UserError: a host has no slot, or more than any machine has.
    """
    for name, count in counts.items():
        if not 1 <= count <= MOST_SLOTS:
            raise UserError(
                f"{source}: {count} slots on {name}; a host of a job has 1 to {MOST_SLOTS}: leave it out, or "
                f"{SLOTS_FIX}"
            )
    return tuple(Host(name, tuple(range(count))) for name, count in counts.items())


def clipped(text: str) -> str:
    """The text in one line of at most 300 characters; a variable may name thousands of hosts."""
    line = re.sub(r"\s+", " ", text)
    return line if len(line) <= 300 else f"{line[:297]}..."
