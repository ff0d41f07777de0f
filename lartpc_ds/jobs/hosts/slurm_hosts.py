"""The hosts of a Slurm job.

Slurm gives the list of nodes, and up to four variables about GPUs and tasks on them, which describe the request, this
node or the whole job. Where they agree the count is certain; where they contradict each other the user must decide.
The names and forms are those of sbatch(1), "OUTPUT ENVIRONMENT VARIABLES".
"""

import re
from collections.abc import Mapping

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.counts import SLOTS_FIX, Allocation, clipped, equal, hosts_of, needed
from lartpc_ds.jobs.hosts.nodelist import expand, terms

__all__ = ["from_slurm"]

_NODES, _TASKS = "SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE"
_ASKED, _HERE, _TOTAL = "SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE", "SLURM_GPUS"


def from_slurm(environment: Mapping[str, str], slots: int | None) -> Allocation:
    """The hosts of this Slurm job; slots are the GPUs per node, or the tasks per node where there are no GPUs.

    Raises:
        UserError: naming the variable, its value and the fix.
    """
    text = needed(environment, _NODES, "Slurm")
    parts = environment.get("SLURM_HET_SIZE", "1")
    if parts != "1":
        raise UserError(
            f"SLURM_HET_SIZE={parts!r}: a heterogeneous job has a list of nodes for each part, and {_NODES} is that of "
            "one; give NODES, such as a[1-2]:4 b[1-2]:8"
        )
    names = [name for term in terms(text, _NODES) for name in expand(term, _NODES)]
    if slots is None:
        counts, source = _counts(environment, len(names))
    else:
        counts, source = [slots] * len(names), f"--slots {slots}"
    hosts = hosts_of(equal(zip(names, counts, strict=True), _NODES), source)
    return Allocation(hosts, (f"hosts: {_NODES}={clipped(text)}", f"slots: {source}"))


def _counts(environment: Mapping[str, str], num_hosts: int) -> tuple[list[int], str]:
    """The slots of each host, and the variables that they come from."""
    variables = [name for name in (_ASKED, _HERE) if environment.get(name)]
    gpus = [_gpus(environment, name) for name in variables]
    source = " and ".join(f"{name}={environment[name]}" for name in variables)
    if len(set(gpus)) > 1:
        raise UserError(f"{source}: contradict each other (is this a step of the job?); {SLOTS_FIX}")
    if gpus and environment.get(_TOTAL) and _gpus(environment, _TOTAL) != gpus[0] * num_hosts:
        raise UserError(
            f"{_TOTAL}={environment[_TOTAL]!r}: by {source}, {num_hosts} node(s) do not have the same number of GPUs, "
            "and Slurm does not say which has how many; give NODES, such as a:4 b:2, or --slots N"
        )
    if gpus and gpus[0]:
        where = " on this node, so on every one" if variables == [_HERE] and num_hosts > 1 else ""
        return gpus[:1] * num_hosts, f"{source} (GPUs{where})"
    if not environment.get(_TASKS):
        raise UserError(
            f"{_ASKED}, {_HERE}, {_TASKS}: no GPUs and no tasks in any of them, so Slurm does not say how many slots a "
            f"host has; {SLOTS_FIX}"
        )
    return _tasks(environment[_TASKS], num_hosts), f"{_TASKS}={clipped(environment[_TASKS])} (tasks)"


def _gpus(environment: Mapping[str, str], variable: str) -> int:
    """The number of GPUs of all types in a text such as `4`, `a100:4` or `a100:2,v100:2`."""
    matches = [re.fullmatch(r"(?:[\w.-]+:)*([0-9]{1,9})", part) for part in environment[variable].split(",")]
    counts = [int(match[1]) for match in matches if match]
    if len(counts) < len(matches):
        raise UserError(
            f"{variable}={environment[variable]!r}: must be numbers of GPUs such as 4, a100:4 or a100:2,v100:2; "
            f"{SLOTS_FIX}"
        )
    return sum(counts)


def _tasks(text: str, num_hosts: int) -> list[int]:
    """The tasks of each node in a text such as `4(x2),2`, which means 4, 4 and 2."""
    matches = [re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part) for part in text.split(",")]
    repeated = [(int(match[1]), int(match[2] or 1)) for match in matches if match]
    if len(repeated) < len(matches):
        raise UserError(f"{_TASKS}={text!r}: must be counts of tasks such as 4(x2),2; {SLOTS_FIX}")
    covered = sum(repeats for _, repeats in repeated)
    if covered != num_hosts:
        raise UserError(
            f"{_TASKS}={text!r}: counts the tasks of {covered} node(s), {_NODES} names {num_hosts} "
            f"(is this a step of the job?); {SLOTS_FIX}"
        )
    return [tasks for tasks, repeats in repeated for _ in range(repeats)]
