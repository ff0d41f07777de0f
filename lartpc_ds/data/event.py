"""One detector event, as every reader yields it and every later step takes it.

Wires stay sparse (flat voxel ids and values) until a rank densifies its own tile: a whole MicroBooNE event is 415 MB
dense and about 1 MB sparse. Ids count in C order over (wire, tick), as larcv3 does, so reading needs no re-indexing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Event", "EventId", "Plane"]


@dataclass(frozen=True, slots=True)
class EventId:
    """Who an event is: the detector's numbers, and where it lies."""

    file: str
    index: int
    run: int
    subrun: int
    event: int

    @property
    def key(self) -> str:
        """Identity for splits and joins: the detector's numbers, or (file, index) where all of them are -1."""
        if (self.run, self.subrun, self.event) == (-1, -1, -1):
            return f"{self.file}:{self.index}"
        return f"{self.run}/{self.subrun}/{self.event}"


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
