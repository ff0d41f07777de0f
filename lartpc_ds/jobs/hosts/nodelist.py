"""Lists of hosts such as `gpu[01-04,07],login1`, as batch systems and people write them, in their own order.

ClusterShell reads the ranges in brackets, with zero padding and steps, and finds what is not a range. Rejected: its
NodeSet, which could read the whole list but sorts it, while the counts of tasks that Slurm gives beside its list belong
to the nodes in Slurm's order. NodeSet also reads `a!b` and `a&b` as set operations, and `@x` as a group of the site.
"""

import itertools
import math
import re

from ClusterShell.RangeSet import RangeSet, RangeSetException

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import name_problem

__all__ = ["expand", "terms"]

_MOST_HOSTS = 65536  # seven times the largest machine; a mistake such as n[1-999999999] would fill the memory
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?(?:/[0-9]{1,9})?")


def terms(text: str, source: str) -> list[str]:
    """The terms of the list, which are separated by commas outside of brackets.

    Raises:
        UserError: naming `source`: a term is empty.
    """
    stripped = [term.strip() for term in re.split(r",(?![^][]*\])", text)]
    if "" in stripped:
        raise UserError(f"{source}={text!r}: nothing before, after or between commas; delete the comma")
    return stripped


def expand(term: str, source: str) -> list[str]:
    """The names that one term stands for; the last bracket varies fastest.

    Args:
        term: a name with any number of brackets, `rack[1-2]n[01-04,07]`.
        source: the variable or argument that the term comes from, for messages.

    Raises:
        UserError: brackets do not pair, a range is none, there are too many hosts, or a name is not that of a host.
    """
    pieces = re.split(r"\[([^][]*)\]", term)
    literals, brackets = pieces[::2], pieces[1::2]
    if any(mark in literal for literal in literals for mark in "[]"):
        raise UserError(f"{source}: {term!r}: brackets must pair and not nest, as in gpu[01-04,07]")
    ranges = [_ranges(bracket, term, source) for bracket in brackets]
    if math.prod(size for size, _ in ranges) > _MOST_HOSTS:
        raise UserError(f"{source}: {term!r}: stands for more than {_MOST_HOSTS} hosts")
    choices = [_numbers(parts, term, source) for _, parts in ranges]
    names = ["".join(_interleaved(literals, chosen)) for chosen in itertools.product(*choices)]
    problem = next((f"{name!r}: {name_problem(name)}" for name in names if name_problem(name)), "")
    if problem:
        raise UserError(f"{source}: {problem}")
    return names


def _ranges(bracket: str, term: str, source: str) -> tuple[int, list[str]]:
    """The largest number of names that a bracket stands for, and its ranges."""
    parts = bracket.split(",")
    matches = [_RANGE.fullmatch(part) for part in parts]
    sizes = [int(match[2] or match[1]) - int(match[1]) + 1 for match in matches if match]
    if len(sizes) < len(parts):
        raise UserError(f"{source}: {term!r}: [{bracket}] must hold numbers and ranges, as in gpu[01-04,07]")
    return sum(max(size, 1) for size in sizes), parts


def _numbers(parts: list[str], term: str, source: str) -> list[str]:
    try:
        return [number for part in parts for number in RangeSet(part).striter()]
    except RangeSetException as error:
        raise UserError(f"{source}: {term!r}: {error}; a range goes from low to high with one width") from None


def _interleaved(literals: list[str], chosen: tuple[str, ...]) -> list[str]:
    return [text for pair in zip(literals, (*chosen, ""), strict=True) for text in pair]
