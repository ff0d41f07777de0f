"""A survey looks at every event before training, for the extent of its values and a digest by which copies are result.

Every voxel is read once, in blocks of a bounded size, by several processes where that pays. Rejected: looking at each
event when it is first trained on, which finds a broken event after hours, and a broken held-out event never.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Voxels
from lartpc_ds.data.files import Block, Reader
from lartpc_ds.data.processes import map_in_processes

__all__ = ["EXTENT", "Survey", "survey"]

EXTENT = np.dtype([("pixels", "<i8"), ("charge", "<f8"), ("lowest", "<f4"), ("highest", "<f4")])
"""The extent of one plane of one event: non-zero pixels, sum, smallest and largest value; zeros without pixels."""

_BLOCK_VOXELS = 1_000_000  # 16 MB of a larcv3 file
_BLOCK_EVENTS = 10_000
_PARALLEL_VOXELS = 20_000_000  # one process takes some seconds for these; further processes take a second to start
_COPY_PIXELS = 8
"""An event of fewer pixels may equal another by chance."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen of all events, in order; for an event that was left out or is damaged this is zeros.

    `extents` is (events, planes) of `EXTENT`. `digests` are equal for events of the same pixels, and empty for events
    of too few pixels. `faults` says what is wrong with a damaged event, by its position.
    """

    extents: NDArray[np.void]
    digests: NDArray[np.bytes_]
    faults: dict[int, str]

    def part(self, start: int, stop: int) -> "Survey":
        """The survey of the events [start, stop), with positions counted from `start`."""
        faults = {place - start: fault for place, fault in self.faults.items() if start <= place < stop}
        return Survey(self.extents[start:stop], self.digests[start:stop], faults)


def survey(
    readers: Sequence[Reader],
    wanted: NDArray[np.bool_],
    workers: int = 1,
    on_events: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Look at the `wanted` events of all files; `on_events` gets the number of events that have been passed."""
    result = Survey(
        np.zeros((len(wanted), readers[0].num_planes), EXTENT), np.zeros(len(wanted), "S16"), dict[int, str]()
    )
    blocks = list(_blocks(readers, wanted))
    if sum(int(reader.num_voxels.sum()) for reader in readers) < _PARALLEL_VOXELS:
        workers = 1
    looks = map_in_processes(_look, (block for _, _, block in blocks), max(min(workers, len(blocks)), 1))
    for (start, stop, _), part in zip(blocks, looks, strict=True):
        mine = wanted[start:stop]
        result.extents[start:stop][mine] = part.extents[mine]
        result.digests[start:stop][mine] = part.digests[mine]
        result.faults.update({start + place: fault for place, fault in part.faults.items() if mine[place]})
        on_events(stop)
    return result


def _blocks(readers: Sequence[Reader], wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int, Block]]:
    """The (first position, stop, block) of every part of a file that has a wanted event."""
    offset = 0
    for reader in readers:
        stops = np.cumsum(reader.num_voxels)
        first = 0
        while first < reader.num_events:
            before = int(stops[first - 1]) if first else 0
            stop = int(np.searchsorted(stops, before + _BLOCK_VOXELS, side="right"))
            stop = min(max(stop, first + 1), first + _BLOCK_EVENTS, reader.num_events)
            if wanted[offset + first : offset + stop].any():
                yield offset + first, offset + stop, reader.block(first, stop)
            first = stop
        offset += reader.num_events


def _look(block: Block) -> Survey:
    voxels = block.read()
    extents = np.zeros(voxels.counts.shape, EXTENT)
    filled = voxels.counts.ravel() > 0
    if filled.any():
        # planes without voxels take no room, so each other plane begins where the plane before it ends
        starts = (np.cumsum(voxels.counts.ravel()) - voxels.counts.ravel())[filled]
        rows = extents.reshape(-1)
        rows["pixels"][filled] = np.add.reduceat((voxels.values != 0).astype(np.int64), starts)
        rows["charge"][filled] = np.add.reduceat(voxels.values, starts, dtype=np.float64)
        rows["lowest"][filled] = np.minimum.reduceat(voxels.values, starts)
        rows["highest"][filled] = np.maximum.reduceat(voxels.values, starts)
    return Survey(extents, _digests(voxels), voxels.faults)


def _digests(voxels: Voxels) -> NDArray[np.bytes_]:
    digests = np.zeros(len(voxels.counts), "S16")
    stop = 0
    for event, counts in enumerate(voxels.counts):
        start, stop = stop, stop + int(counts.sum())
        if stop - start >= _COPY_PIXELS:
            digest = hashlib.blake2b(counts.tobytes(), digest_size=8)
            digest.update(voxels.ids[start:stop].data)
            digest.update(voxels.values[start:stop].data)
            digests[event] = digest.hexdigest().encode()
    return digests
