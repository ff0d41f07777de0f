"""Section `batch` of the run configuration: what `lartpc-ds submit` asks a batch system for.

The keys are those that Slurm, LSF and PBS have in common; an option that only one of them has goes to `lines`. Nothing
here changes a number of a run, so every key may differ when a run is resumed. Words that become part of a directive may
contain no blank, quote or `#`, because each system reads these characters in its own way and none reports a mistake.
"""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from lartpc_ds.config.section import Section

__all__ = ["BatchConfig"]

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s\"'`#\\]+", text):
        raise ValueError("must be one word without blanks, quotes, # or \\; what needs them goes to batch.lines")
    return text


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line of text, without line breaks or tabs; give every line its own string")
    return text


def _directive(text: str) -> str:
    if not re.match(r"#(SBATCH|BSUB|PBS) +-", text):
        raise ValueError("must be a directive: #SBATCH, #BSUB or #PBS and an option; commands go to batch.prologue")
    return _one_line(text)


def _time(text: str) -> str:
    parts = _TIME.fullmatch(text)
    if parts is None or (parts["days"] is not None and int(parts["hours"]) > 23):
        raise ValueError('must be "HH:MM:SS" or "D-HH:MM:SS", such as "02:00:00"')
    if not re.search("[1-9]", text):
        raise ValueError("must be more than 0")
    return text


Word = Annotated[str, AfterValidator(_word)]
Count = Annotated[int, Field(ge=1)]


class BatchConfig(Section):
    """The resources that a batch job of this run asks for; only `lartpc-ds submit` reads them."""

    account: Word | None = None
    """The account that pays: an account of Slurm or PBS, a project of LSF."""
    partition: Word | None = None
    """The partition of Slurm, or the queue of LSF or PBS."""
    qos: Word | None = None
    """The quality of service; only Slurm has it."""
    time: Annotated[str, AfterValidator(_time)] | None = None
    """The time limit of the job each time it runs, "HH:MM:SS" or "D-HH:MM:SS"; by default that of the partition."""
    nodes: Count = 1
    ranks_per_node: Count = 1
    """The number of ranks per node; each has one GPU, or some cores."""
    cpus_per_rank: Count | None = None
    """The number of cores per rank; by default what the system gives."""
    gres: Word | None = None
    """The devices of a node, in the words of the system: `--gres` of Slurm ("gpu:4"), `-gpu` of LSF ("num=4"), a part
    of a chunk of PBS ("ngpus=4")."""
    constraint: Word | None = None
    """Which nodes to take: `--constraint` of Slurm, `select[]` of LSF, a part of a chunk of PBS."""
    prologue: tuple[Annotated[str, AfterValidator(_one_line)], ...] = ()
    """Shell lines that run first: they load modules, or an environment, or start a container."""
    lines: tuple[Annotated[str, AfterValidator(_directive)], ...] = ()
    """More directives, which go into the script unchanged, such as "#SBATCH --exclusive"."""
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 300
    """How long before the end of `time` the job is asked to save and stop; a step and a checkpoint must fit into it."""

    @model_validator(mode="after")
    def _signal_within_time(self) -> Self:
        if self.time_seconds is not None and self.signal_seconds >= self.time_seconds:
            raise ValueError(
                f"signal_seconds = {self.signal_seconds} is not below time = {self.time!r}, so the job would be asked "
                "to stop before it starts; give more time, or a smaller signal_seconds"
            )
        return self

    @property
    def ranks(self) -> int:
        """The number of ranks of the whole job."""
        return self.nodes * self.ranks_per_node

    @property
    def time_seconds(self) -> int | None:
        """`time` in seconds; None where none is given."""
        if self.time is None:
            return None
        parts = _TIME.fullmatch(self.time)
        assert parts is not None, self.time
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
