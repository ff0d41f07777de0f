"""One detector event, as every reader yields it and every later step takes it.

Wires stay sparse (flat voxel ids and values) until a rank densifies its own tile: a whole MicroBooNE event is 415 MB
dense and about 1 MB sparse. Ids count in C order over (wire, tick), as larcv3 does, so reading needs no re-indexing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Event", "EventId", "Plane", "Voxels"]


@dataclass(frozen=True, slots=True)
class EventId:
    """Who an event is: the detector's numbers, and where it lies."""

    file: str
    index: int
    run: int
    subrun: int
    event: int

    @property
    def has_numbers(self) -> bool:
        """Whether the detector has numbered the event; all three numbers are -1 where it has not."""
        return (self.run, self.subrun, self.event) != (-1, -1, -1)

    @property
    def key(self) -> str:
        """The event's identity for splits and joins: the detector's numbers, or else its file and index."""
        return f"{self.run}/{self.subrun}/{self.event}" if self.has_numbers else f"{self.file}:{self.index}"


@dataclass(frozen=True, slots=True)
class Plane:
    """The non-zero pixels of one wire plane.

    `shape` is (wires, ticks); `ids` (int64) are C-order flat indices into it, `values` (float32) the charge there.
    """

    plane: int
    shape: tuple[int, int]
    ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Event:
    """Wires and truth of one event; `particles` has `schema.PARTICLE` rows, the primary first."""

    id: EventId
    planes: tuple[Plane, ...]
    particles: NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Voxels:
    """The voxels of events in a row, plane after plane, ids ascending in each; `counts` is (events, planes).

    A damaged event has no voxels here, but a sentence in `faults`, by its place in the row.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    faults: dict[int, str]
