"""One detector event, as every reader gives it and every later step takes it.

Wires stay sparse (flat voxel ids and values) until a rank makes its own tile dense, because a whole MicroBooNE event is
415 MB dense and about 1 MB sparse. Ids count in C order over (wire, tick), as in larcv3, so that reading needs no new
indices.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Event", "EventId", "Plane", "Voxels"]


@dataclass(frozen=True, slots=True)
class EventId:
    """The identity of an event: the detector's numbers, and the place of the event in its file."""

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
    """The voxels of consecutive events, plane after plane, with ascending ids in each; `counts` is (events, planes).

    A damaged event has no voxels here; `faults` has a sentence about it, by its place among the events.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    faults: dict[int, str]
