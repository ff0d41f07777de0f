"""Section `batch` of the run configuration: what `lartpc-ds submit` asks a batch system for.

The keys are what Slurm, LSF and PBS have in common; what only one of them has goes to `lines`. Nothing here changes a
number of a run, so every key may differ when a run is resumed. Words that become part of a directive may hold no blank,
quote or `#`: each system reads those in its own way, and none says so.
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
    found = _TIME.fullmatch(text)
    if found is None or (found["days"] is not None and int(found["hours"]) > 23):
        raise ValueError('must be "HH:MM:SS" or "D-HH:MM:SS", such as "02:00:00"')
    if not re.search("[1-9]", text):
        raise ValueError("must be more than 0")
    return text


Word = Annotated[str, AfterValidator(_word)]
Count = Annotated[int, Field(ge=1)]


class BatchConfig(Section):
    """What a batch job of this run asks for; only `lartpc-ds submit` reads it."""

    account: Word | None = None
    """Who pays: Slurm's and PBS's account, LSF's project."""
    partition: Word | None = None
    """Slurm's partition; the queue of LSF and PBS."""
    qos: Word | None = None
    """Slurm only."""
    time: Annotated[str, AfterValidator(_time)] | None = None
    """Limit of one turn of the job, "HH:MM:SS" or "D-HH:MM:SS"; none: the partition's."""
    nodes: Count = 1
    ranks_per_node: Count = 1
    """One GPU each, or some cores."""
    cpus_per_rank: Count | None = None
    """Cores; none: the system's default."""
    gres: Word | None = None
    """Devices of a node, in the system's words: Slurm's `--gres` ("gpu:4"), LSF's `-gpu` ("num=4"), PBS's part of a
    chunk ("ngpus=4")."""
    constraint: Word | None = None
    """Which nodes: Slurm's `--constraint`, LSF's `select[]`, PBS's part of a chunk."""
    prologue: tuple[Annotated[str, AfterValidator(_one_line)], ...] = ()
    """Shell lines that run first: modules, an environment, a container's command."""
    lines: tuple[Annotated[str, AfterValidator(_directive)], ...] = ()
    """More directives, as they are: "#SBATCH --exclusive"."""
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 300
    """How long before `time` is over the job is asked to save and stop; a step and a checkpoint must fit."""

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
        """Of the whole job."""
        return self.nodes * self.ranks_per_node

    @property
    def time_seconds(self) -> int | None:
        """`time` as a number."""
        if self.time is None:
            return None
        found = _TIME.fullmatch(self.time)
        assert found is not None, self.time
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
