"""Writing events in larcv3's HDF5 layout with h5py alone.

The chunks (10 to 1000 rows) and the filter are larcv3's own, so that its reader finds what it would have written
itself. The chunks are small, and one HDF5 call per plane costs more than its bytes, so rows are gathered and appended
in blocks. The file grows as OUT.partial and gets its name on a clean exit, so that a file with that name is complete.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Event, Plane
from lartpc_ds.data.schema import EVENT_ID, EXTENTS, ID_EXTENTS, IMAGE_META, PARTICLE, VOXEL
from lartpc_ds.errors import UserError

__all__ = ["Larcv3Writer"]

_FLUSH_EVENTS = 256
_FLUSH_VOXELS = 500_000


class _Table:
    """A dataset that grows, and the rows that wait for it; `rows` counts both."""

    def __init__(self, file: h5py.File, name: str, dtype: np.dtype[np.void], chunk: int) -> None:
        self.dataset = file.create_dataset(
            name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(chunk,), compression="gzip", compression_opts=1
        )
        self.dtype = dtype
        self.rows = 0
        self.waiting: list[NDArray[np.void]] = []

    def append(self, rows: NDArray[np.void]) -> None:
        self.waiting.append(rows)
        self.rows += len(rows)

    def flush(self) -> None:
        if self.waiting:
            done = self.dataset.shape[0]
            self.dataset.resize((self.rows,))
            # zeros first, because the padding of C++ would hold old memory, and equal events would make unequal files
            block = np.zeros(self.rows - done, self.dtype)
            for name in self.dtype.names or ():
                block[name] = np.concatenate([rows[name] for rows in self.waiting])
            self.dataset[done:] = block
            self.waiting.clear()


class Larcv3Writer:
    """Writes `sparse2d_<product>_group`, `particle_<truth>_group` and `Events/event_id`; use it in a `with` statement.

    Raises UserError if `path` exists or its folder does not. An exception inside the `with` removes the partial file.
    """

    def __init__(self, path: Path, *, product: str = "wire", truth: str = "mctruth") -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._refuse_existing()
        if not self.path.parent.is_dir():
            raise UserError(f"{self.path}: the folder {self.path.parent} does not exist; make it first")
        try:
            self._file = h5py.File(self._partial, "w")
        except OSError as error:
            raise UserError(f"{self._partial}: cannot be written ({error})") from None
        images, particles = f"Data/sparse2d_{product}_group", f"Data/particle_{truth}_group"
        self._event_ids = _Table(self._file, "Events/event_id", EVENT_ID, 100)
        self._extents = _Table(self._file, f"{images}/extents", EXTENTS, 10)
        self._metas = _Table(self._file, f"{images}/image_meta", IMAGE_META, 100)
        self._voxel_extents = _Table(self._file, f"{images}/voxel_extents", ID_EXTENTS, 100)
        self._voxels = _Table(self._file, f"{images}/voxels", VOXEL, 1000)
        self._particle_extents = _Table(self._file, f"{particles}/extents", EXTENTS, 100)
        self._particles = _Table(self._file, f"{particles}/particles", PARTICLE, 500)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = False
        try:
            if kind is None:
                self._flush()
                self._file.close()
                self._refuse_existing()
                self._partial.rename(self.path)
                finished = True
        finally:
            if not finished:
                self._file.close()
                self._partial.unlink(missing_ok=True)

    def write(self, event: Event) -> None:
        """Append one event; its numbers (run, subrun, event) are kept, its (file, index) is dropped."""
        first_plane = self._metas.rows
        for plane in event.planes:
            self._write_plane(plane)
        self._extents.append(np.array([(first_plane, len(event.planes))], EXTENTS))
        self._particle_extents.append(np.array([(self._particles.rows, len(event.particles))], EXTENTS))
        self._particles.append(event.particles)
        self._event_ids.append(np.array([(event.id.run, event.id.subrun, event.id.event)], EVENT_ID))
        waiting = self._voxels.rows - self._voxels.dataset.shape[0]
        if len(self._extents.waiting) >= _FLUSH_EVENTS or waiting >= _FLUSH_VOXELS:
            self._flush()

    def _write_plane(self, plane: Plane) -> None:
        assert plane.ids.shape == plane.values.shape, "a plane needs one value for each id"
        voxels = np.zeros(len(plane.ids), VOXEL)
        voxels["id"], voxels["value"] = plane.ids, plane.values
        # larcv3's SBND files give image_sizes in pixels, not centimetres, and origin 0
        meta = (1, plane.plane, plane.shape, plane.shape, (0, 0))
        self._metas.append(np.array([meta], IMAGE_META))
        self._voxel_extents.append(np.array([(self._voxels.rows, len(voxels), plane.plane)], ID_EXTENTS))
        self._voxels.append(voxels)

    def _tables(self) -> tuple[_Table, ...]:
        images = (self._extents, self._metas, self._voxel_extents, self._voxels)
        return (self._event_ids, *images, self._particle_extents, self._particles)

    def _flush(self) -> None:
        for table in self._tables():
            table.flush()

    def _refuse_existing(self) -> None:
        if self.path.exists():
            raise UserError(f"{self.path} exists and is not overwritten; give another name or remove it")
