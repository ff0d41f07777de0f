"""A block of consecutive events of a larcv3 file, read in one go.

Reading event by event costs an HDF5 call per plane, which takes longer than its bytes. larcv3 writes the voxels of
consecutive events into one range of rows; a file where they lie otherwise is read plane by plane. A few numpy
expressions over the whole block find the planes that may be wrong. Only these go through the checks of a single event,
which say what is wrong or put unsorted voxels in order.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Voxels
from lartpc_ds.data.hdf5 import Table, open_for_reading
from lartpc_ds.data.larcv3_checks import checked_voxels
from lartpc_ds.data.schema import VOXEL
from lartpc_ds.errors import UserError

__all__ = ["Larcv3Block"]


@dataclass(frozen=True, slots=True)
class Larcv3Block:
    """Events [first, first + len(extents)) of `path`; `extents` is (events, planes) of `schema.ID_EXTENTS`."""

    path: Path
    images: str
    shapes: tuple[tuple[int, int], ...]
    first: int
    extents: NDArray[np.void]

    def read(self) -> Voxels:
        """All voxels of sound events; a fault is a sentence that names file, event and plane."""
        faults: dict[int, str] = {}
        counts = self.extents["N"].astype(np.int64)
        with open_for_reading(self.path) as file:
            rows = self._rows(Table(file, f"{self.images}/voxels", VOXEL), counts, faults)
        owner = np.repeat(np.arange(counts.size), counts.ravel())  # event * planes + plane, per voxel
        ids, values = rows["id"].astype(np.int64), np.ascontiguousarray(rows["value"])
        for number in np.unique(owner[self._suspicious(rows["id"], values, owner)]).tolist():
            event, plane = divmod(number, len(self.shapes))
            start, stop = np.searchsorted(owner, (number, number + 1))
            try:
                sound = checked_voxels(rows[start:stop], self.shapes[plane], self._where(event, plane))
                ids[start:stop], values[start:stop] = sound
            except UserError as error:
                faults.setdefault(event, str(error))
        if faults:
            damaged = list(faults)
            sound_voxels = ~np.isin(owner // len(self.shapes), damaged)
            ids, values, counts[damaged] = ids[sound_voxels], values[sound_voxels], 0
        return Voxels(counts, ids, values, faults)

    def _rows(self, table: Table, counts: NDArray[np.int64], faults: dict[int, str]) -> NDArray[np.void]:
        """The rows of all planes, in order; sets `counts` to 0 for events that cannot be read."""
        first = self.extents["first"].astype(np.int64).ravel()
        stop = first + counts.ravel()
        filled = np.flatnonzero(counts.ravel())
        if len(filled) == 0:
            return np.zeros(0, VOXEL)
        if np.array_equal(first[filled][1:], stop[filled][:-1]):
            try:
                return table.read(int(first[filled[0]]), int(stop[filled[-1]]))
            except UserError:
                pass  # read plane by plane: one damaged chunk must not hide the other events
        parts: list[NDArray[np.void]] = []
        for event, row in enumerate(self.extents):
            try:
                parts += [
                    table.read(int(extent["first"]), int(extent["first"]) + int(extent["N"]), self._where(event, plane))
                    for plane, extent in enumerate(row)
                ]
            except UserError as error:
                faults[event], counts[event] = str(error), 0
        return np.concatenate([np.zeros(0, VOXEL), *parts])

    def _suspicious(
        self, raw_ids: NDArray[np.uint64], values: NDArray[np.float32], owner: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which voxels lie outside their plane, have no finite value, or have an id not above the one before."""
        sizes = np.array([wires * ticks for wires, ticks in self.shapes], np.uint64)
        suspicious = (raw_ids >= sizes[owner % len(sizes)]) | ~np.isfinite(values)
        suspicious[1:] |= (raw_ids[1:] <= raw_ids[:-1]) & (owner[1:] == owner[:-1])
        return suspicious

    def _where(self, event: int, plane: int) -> str:
        number = int(self.extents["ID"][event, plane])
        return f"{self.path}: {self.images}/voxels, event {self.first + event}, plane {number}"
