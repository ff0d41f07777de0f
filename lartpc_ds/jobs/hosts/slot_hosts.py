"""The hosts of an LSF or a PBS job; both systems list a host once per slot.

The site decides what a slot is, often a processor core, and neither system tells a job its GPUs in one form. So a file
made here says what was counted, and a number given by the user overrides it. This is written from the manuals of LSF 10
and of PBS, and has not been run on either system.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.counts import Allocation, clipped, hosts_of, needed, summed
from lartpc_ds.jobs.hosts.hostfile import name_problem

__all__ = ["from_lsf", "from_pbs"]

_FILE, _PAIRS, _PBS_FILE = "LSB_DJOB_HOSTFILE", "LSB_MCPU_HOSTS", "PBS_NODEFILE"


def from_lsf(environment: Mapping[str, str], slots: int | None) -> Allocation:
    """The hosts of this LSF job without its launch node, with the slots that LSF counts.

    On Summit and similar machines the script of a job runs on a node that takes no part in the job: it is the first
    host, which has one slot where every other host has more.

    Raises:
        UserError: naming the variable, its value and the fix.
    """
    if environment.get(_FILE):
        source, counted = _FILE, _lines(_FILE, environment[_FILE])
    else:
        source, counted = _PAIRS, _pairs(needed(environment, _PAIRS, "LSF", _FILE))
    counts = summed(counted)
    left_out = []
    (first, its_slots), *others = counts.items()
    if others and its_slots == 1 and all(count > 1 for _, count in others):
        del counts[first]
        left_out = [f"left out: {first}, the launch node (one slot, where every other host has more)"]
    return _allocation(counts, slots, "LSF", f"{source}={environment[source]}", left_out)


def from_pbs(environment: Mapping[str, str], slots: int | None) -> Allocation:
    """The hosts of this PBS job; a host has one slot per line that names it.

    Raises:
        UserError: naming the variable, its value and the fix.
    """
    path = needed(environment, _PBS_FILE, "PBS")
    return _allocation(summed(_lines(_PBS_FILE, path)), slots, "PBS", f"{_PBS_FILE}={path}", [])


def _allocation(counts: dict[str, int], slots: int | None, system: str, source: str, left_out: list[str]) -> Allocation:
    if slots is None:
        why = f"slots: as {system} counts them, whatever they are here; --slots N says how many devices a host has"
    else:
        counts, why = dict.fromkeys(counts, slots), f"slots: --slots {slots}"
    return Allocation(hosts_of(counts, source), (f"hosts: {clipped(source)}", *left_out, why))


def _lines(variable: str, path: str) -> list[tuple[str, int]]:
    """The names in a file, with one slot for each line."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(
            f"{variable}={path!r}: cannot read this file: {error.strerror}; run it where the job's script runs, or "
            "give NODES such as gpu[01-04,07]:4"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{variable}={path!r}: is not a text file; it must have the name of a host per line") from None
    names = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    problems = [f"line {number}, {name!r}: {name_problem(name)}" for number, name in names if name_problem(name)]
    if problems or not names:
        raise UserError("\n  ".join([f"{variable}={path!r}: must have the name of a host per line", *problems[:10]]))
    return [(name, 1) for _, name in names]


def _pairs(text: str) -> list[tuple[str, int]]:
    """The hosts of a text such as `a 4 b 2`, in which names and numbers of slots alternate."""
    fields = text.split()
    names, numbers = fields[::2], fields[1::2]
    if len(names) != len(numbers) or not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
        raise UserError(f"{_PAIRS}={clipped(text)!r}: must be names and numbers of slots in turn, such as 'a 4 b 4'")
    problems = [f"{name!r}: {name_problem(name)}" for name in names if name_problem(name)]
    if problems:
        raise UserError("\n  ".join([f"{_PAIRS}={clipped(text)!r}:", *problems[:10]]))
    return [(name, int(number)) for name, number in zip(names, numbers, strict=True)]
