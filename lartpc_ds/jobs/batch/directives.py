"""The directives of a job script: the section `batch` in the words of each batch system.

Each system has one function from the configuration to lines of text. A key for which a system has no option is refused:
a job without what was asked for would wait, run or be paid in another way, and nobody would know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lartpc_ds.config.batch import BatchConfig
from lartpc_ds.errors import UserError

__all__ = ["SYSTEMS", "System", "directives"]


@dataclass(frozen=True, slots=True)
class System:
    """A batch system, whose `command` submits a script that it reads as a file or from its standard input."""

    title: str
    prefix: str
    command: str
    options: Callable[[BatchConfig], list[str]]
    from_stdin: bool = False


def directives(system: str, batch: BatchConfig) -> list[str]:
    """The lines of a script that ask for what `batch` says; lines of the user come last.

    Raises:
        UserError: a line is for another system, or this system has no option for a key.
    """
    known = SYSTEMS[system]
    for line in batch.lines:
        if not line.startswith(f"{known.prefix} "):
            raise UserError(f"batch.lines: {line!r} is not for {known.title}, whose lines begin with {known.prefix}")
    if batch.qos is not None and system != "slurm":
        raise UserError(
            f"batch.qos = {batch.qos!r}: {known.title} has no such option; remove it, and give what your site has "
            f'instead in batch.lines, such as "{known.prefix} -..."'
        )
    return [*(f"{known.prefix} {option}" for option in known.options(batch)), *batch.lines]


def _given(options: Mapping[str, object]) -> list[str]:
    """The options whose `{}` has a value, with that value in its place."""
    return [option.format(value) for option, value in options.items() if value is not None]


def _slurm(batch: BatchConfig) -> list[str]:
    return _given(
        {
            "--account={}": batch.account,
            "--partition={}": batch.partition,
            "--qos={}": batch.qos,
            "--time={}": batch.time,
            "--nodes={}": batch.nodes,
            "--ntasks-per-node={}": batch.ranks_per_node,
            "--cpus-per-task={}": batch.cpus_per_rank,
            "--gres={}": batch.gres,
            "--constraint={}": batch.constraint,
        }
    )


def _lsf(batch: BatchConfig) -> list[str]:
    lines = _given(
        {
            "-n {}": batch.ranks,
            '-R "span[ptile={}]"': batch.ranks_per_node,
            "-P {}": batch.account,
            "-q {}": batch.partition,
            '-R "affinity[core({})]"': batch.cpus_per_rank,
            '-gpu "{}"': batch.gres,
            '-R "select[{}]"': batch.constraint,
        }
    )
    if batch.time_seconds is not None:
        hours, minutes = divmod(_minutes(batch.time_seconds), 60)
        # LSF counts in minutes, and sends the signal of -wa before a limit that it knows
        lines += [f"-W {hours}:{minutes:02d}", '-wa "USR1"', f'-wt "{_minutes(batch.signal_seconds)}"']
    return lines


def _minutes(seconds: int) -> int:
    return -(-seconds // 60)


def _pbs(batch: BatchConfig) -> list[str]:
    cores = batch.ranks_per_node * (batch.cpus_per_rank or 1)
    chunk = [f"{batch.nodes}", f"ncpus={cores}", f"mpiprocs={batch.ranks_per_node}", batch.gres, batch.constraint]
    lines = [f"-l select={':'.join(part for part in chunk if part is not None)}", "-l place=scatter"]
    lines += _given({"-A {}": batch.account, "-q {}": batch.partition})
    if batch.time_seconds is not None:
        hours, rest = divmod(batch.time_seconds, 3600)
        lines.append(f"-l walltime={hours}:{rest // 60:02d}:{rest % 60:02d}")
    return lines


SYSTEMS = {
    "slurm": System("Slurm", "#SBATCH", "sbatch", _slurm),
    "lsf": System("LSF", "#BSUB", "bsub", _lsf, from_stdin=True),
    "pbs": System("PBS", "#PBS", "qsub", _pbs),
}
