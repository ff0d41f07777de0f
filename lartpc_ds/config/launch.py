"""Section `launch` of the run configuration: the surroundings of every rank.

Nothing here changes a number of a run, so a resumed run may change all of it.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from lartpc_ds.config.section import Positive, Section

__all__ = ["LaunchConfig"]

_NOT_OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that tell a process which rank it is."""


class LaunchConfig(Section):
    """The surroundings of every rank, on this machine and on other hosts."""

    environment: dict[str, str] = Field(default={})
    """Environment variables to set for every rank, such as {NCCL_DEBUG = "INFO"}."""
    forward: tuple[str, ...] = ()
    """Environment variables to copy from the launching shell to every rank."""
    hdf5_file_locking: Literal["default", "on", "off", "best-effort"] = "default"
    """Whether HDF5 locks files while it reads them, which some parallel file systems refuse; `default` is HDF5's
    own."""
    timeout_minutes: Positive = 30
    """The time after which a rank that waits for the others gives up."""
    stage_to: str | None = None
    """A folder on the disk of each host to which the event files are copied first. It may contain environment variables
    that every host has, such as those of `environment`; over ssh there are few others, and rarely $TMPDIR."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        ours = sorted({*self.environment, *self.forward} & {*_NOT_OURS})
        if ours:
            raise ValueError(f"environment and forward: {', '.join(ours)} must be left to the launcher; remove them")
        twice = sorted({*self.environment} & {*self.forward})
        if twice:
            raise ValueError(f"environment and forward: both name {', '.join(twice)}; leave one")
        return self
