"""Consecutive events of one file, for what looks at every event: read in one go, and by another process if need be."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "Voxels"]


@dataclass(frozen=True, slots=True)
class Voxels:
    """The voxels of events in a row, plane after plane, ids ascending in each; `counts` is (events, planes).

    A damaged event has no voxels here, but a sentence in `faults`, by its place in the row.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    faults: dict[int, str]


class Block(Protocol):
    """Picklable, and without an open file."""

    def read(self) -> Voxels:
        """All voxels, checked as when the events are read one by one."""
