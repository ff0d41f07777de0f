"""A hostfile made from the job that this process is in, or from a list of nodes.

Batch systems tell their jobs what they got through the environment, each in its own way. It is an argument here, so
that every case is a test without a batch system; asking `scontrol` or `bjobs` instead would need them on the host. The
file says in comments what its hosts and counts come from.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.counts import Allocation, clipped, equal, hosts_of
from lartpc_ds.jobs.hosts.hostfile import MOST_SLOTS, render
from lartpc_ds.jobs.hosts.nodelist import expand, terms
from lartpc_ds.jobs.hosts.slot_hosts import from_lsf, from_pbs
from lartpc_ds.jobs.hosts.slurm_hosts import from_slurm

__all__ = ["allocate", "from_nodes", "make"]

_SYSTEMS: Mapping[str, Callable[[Mapping[str, str], int | None], Allocation]] = {
    "slurm": from_slurm,
    "lsf": from_lsf,
    "pbs": from_pbs,
}
_SHOWN_BY = {"SLURM_JOB_NODELIST": "slurm", "LSB_DJOB_HOSTFILE": "lsf", "LSB_MCPU_HOSTS": "lsf", "PBS_NODEFILE": "pbs"}
_EXAMPLE = "NODES such as gpu[01-04,07]:4"


def make(nodes: Sequence[str], system: str, slots: str, environment: Mapping[str, str], today: date) -> str:
    """The text of a hostfile.

    Args:
        nodes: lists such as `gpu[01-04,07]:4`; empty to ask the batch system.
        system: "slurm", "lsf", "pbs", "nodes" or "auto".
        slots: "auto", or a number for every host.
        environment: of this process.
        today: written into the file.

    Raises:
        UserError: naming the variable or argument, its value and the fix.
    """
    found = allocate(nodes, system, _slots(slots), environment)
    total = sum(host.slots for host in found.hosts)
    counted = f"{len(found.hosts)} host(s), {total} slot(s); ranks are numbered in this order."
    return render(found.hosts, [f"Made by `lartpc-ds hostfile make` on {today}.", *found.provenance, counted])


def _slots(text: str) -> int | None:
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_SLOTS:
        raise UserError(f"--slots {text!r}: must be auto, or a number from 1 to {MOST_SLOTS}")
    return int(text)


def allocate(nodes: Sequence[str], system: str, slots: int | None, environment: Mapping[str, str]) -> Allocation:
    """The hosts of `system`; "auto" takes `nodes` if there are any, else the batch system whose job this is.

    Args:
        nodes: lists such as `gpu[01-04,07]:4`.
        system: "slurm", "lsf", "pbs", "nodes" or "auto".
        slots: of every host; None to take what the source says.
        environment: of this process.

    Raises:
        UserError: naming the variable or argument, its value and the fix.
    """
    if system not in (*_SYSTEMS, "nodes", "auto"):
        raise UserError(f"--from {system!r}: must be {', '.join(_SYSTEMS)}, nodes or auto")
    if nodes and system in _SYSTEMS:
        raise UserError(f"--from {system} and NODES {' '.join(nodes)!r}: give one of the two")
    if nodes:
        return from_nodes(nodes, slots)
    if system == "nodes":
        raise UserError(f"--from nodes: give {_EXAMPLE}")
    if system == "auto":
        shown = [by for variable, by in _SHOWN_BY.items() if environment.get(variable)]
        if not shown:
            raise UserError(
                f"hostfile make: no NODES, and none of {', '.join(_SHOWN_BY)} is set, so this is no job of Slurm, LSF "
                f"or PBS; run it inside a job, or give {_EXAMPLE}"
            )
        system = shown[0]
    return _SYSTEMS[system](environment, slots)


def from_nodes(nodes: Sequence[str], slots: int | None) -> Allocation:
    """The hosts of lists of nodes, in their order; a term has its own count, `gpu[01-04,07]:4`.

    Args:
        nodes: lists whose terms are separated by commas or blanks.
        slots: of every host, whatever its term says; None to believe the terms.

    Raises:
        UserError: naming every wrong term, one without a count, or a host with two.
    """
    counted: list[tuple[str, int]] = []
    problems: list[str] = []
    for text in (part for node in nodes for part in node.split() or [""]):
        try:
            for term in terms(text, "NODES"):
                counted += _counted(term, slots)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n  ".join(problems))
    why = "as in the list" if slots is None else f"--slots {slots}"
    given = clipped(" ".join(nodes))
    return Allocation(hosts_of(equal(counted, "NODES"), "NODES"), (f"hosts: NODES={given}", f"slots: {why}"))


def _counted(term: str, slots: int | None) -> list[tuple[str, int]]:
    found = re.fullmatch("(.+):([0-9]{1,9})", term)
    names = expand(found[1] if found else term, "NODES")
    if found is None and slots is None:
        raise UserError(f"NODES: {term!r}: has how many slots? Write {term}:N, or give --slots N for all hosts")
    count = int(found[2]) if found else 0
    return [(name, count if slots is None else slots) for name in names]
