"""A hostfile made from the job that this process belongs to, or from a list of nodes.

A batch system tells a job its hosts through environment variables, each system in its own way. The environment is an
argument here, so that every case can be tested without a batch system. Rejected: asking `scontrol` or `bjobs`, which
the host would need to have. Comments in the file say where its hosts and counts come from.
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
    """The text of the hostfile for these nodes or this job.

    Args:
        nodes: lists such as `gpu[01-04,07]:4`; if there are none, the batch system is asked.
        system: "slurm", "lsf", "pbs", "nodes" or "auto".
        slots: "auto", or the number of slots of every host.
        environment: the environment of this process.
        today: the date that is written into the file.

    Raises:
        UserError: naming the variable or argument, its value and the fix.
    """
    allocation = allocate(nodes, system, _slots(slots), environment)
    total = sum(host.slots for host in allocation.hosts)
    counted = f"{len(allocation.hosts)} host(s), {total} slot(s); ranks are numbered in this order."
    return render(allocation.hosts, [f"Made by `lartpc-ds hostfile make` on {today}.", *allocation.provenance, counted])


def _slots(text: str) -> int | None:
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_SLOTS:
        raise UserError(f"--slots {text!r}: must be auto, or a number from 1 to {MOST_SLOTS}")
    return int(text)


def allocate(nodes: Sequence[str], system: str, slots: int | None, environment: Mapping[str, str]) -> Allocation:
    """The hosts that `system` gives; "auto" takes `nodes` if there are any, and else the batch system of this job.

    Args:
        nodes: lists such as `gpu[01-04,07]:4`.
        system: "slurm", "lsf", "pbs", "nodes" or "auto".
        slots: the number of slots of every host; None to take what the source says.
        environment: the environment of this process.

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
        seen = [name for variable, name in _SHOWN_BY.items() if environment.get(variable)]
        if not seen:
            raise UserError(
                f"hostfile make: no NODES, and none of {', '.join(_SHOWN_BY)} is set, so this is no job of Slurm, LSF "
                f"or PBS; run it inside a job, or give {_EXAMPLE}"
            )
        system = seen[0]
    return _SYSTEMS[system](environment, slots)


def from_nodes(nodes: Sequence[str], slots: int | None) -> Allocation:
    """The hosts of lists of nodes, in their order; a term may end with its count, as in `gpu[01-04,07]:4`.

    Args:
        nodes: lists whose terms are separated by commas or blanks.
        slots: the number of slots of every host, whatever its term says; None to believe the terms.

    Raises:
        UserError: naming every wrong term, every term without a count, or a host with two counts.
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
    with_count = re.fullmatch("(.+):([0-9]{1,9})", term)
    names = expand(with_count[1] if with_count else term, "NODES")
    if with_count is None and slots is None:
        raise UserError(f"NODES: {term!r}: has no number of slots. Write {term}:N, or give --slots N for all hosts")
    count = int(with_count[2]) if with_count else 0
    return [(name, count if slots is None else slots) for name in names]
