"""How ranks get at their machine and files; nothing here changes a number, so a resumed run may change all of it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lartpc_ds.config.section import Positive, Section

__all__ = ["LaunchConfig"]

_NOT_OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What says which rank a process is."""


class LaunchConfig(Section):
    """What ranks find around them, here and on other hosts."""

    environment: dict[str, str] = Field(default={})
    """Variables of every rank, such as {NCCL_DEBUG = "INFO"}."""
    forward: tuple[str, ...] = ()
    """Names of variables that every rank gets with the values that they have where `lartpc-ds` is started."""
    hdf5_file_locking: Literal["default", "on", "off", "best-effort"] = "default"
    """HDF5 locks the files that it reads, which some parallel file systems refuse; `default` is the library's own."""
    timeout_minutes: Positive = 30
    """A rank that waits so long for the others gives up."""
    stage_to: str | None = None
    """A folder of each host's own disk to which event files are copied first; may name variables that each host has, as
    those of `environment`; over ssh there are few others, and rarely $TMPDIR."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        ours = sorted({*self.environment, *self.forward} & {*_NOT_OURS})
        if ours:
            raise ValueError(f"environment and forward: {', '.join(ours)} must be left to the launcher; remove them")
        twice = sorted({*self.environment} & {*self.forward})
        if twice:
            raise ValueError(f"environment and forward: both name {', '.join(twice)}; leave one")
        return self
