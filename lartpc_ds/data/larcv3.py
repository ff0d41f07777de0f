"""Reading events from larcv3's HDF5 layout with h5py alone.

A file is checked as a whole when a reader is made (groups, types, every extent), so that training never starts on a
file that cannot work. Voxels are checked event by event as they are read, because reading all of them first would take
as long as an epoch. Handles are opened at the first read in each process and are never pickled, so a reader may be
given to forked or spawned workers. This module was written against files of larcv3 itself; larcv3 is not needed.

Layout: `extents` gives each event a range of rows in `image_meta` and `voxel_extents` (row j of one pairs with row j of
the other, ID is the plane), each of those a range in `voxels`.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Event, EventId, Plane
from lartpc_ds.data.hdf5 import Table, child_names, open_for_reading
from lartpc_ds.data.larcv3_block import Larcv3Block
from lartpc_ds.data.larcv3_checks import (
    check_extents,
    check_same,
    checked_ids,
    checked_voxels,
    choose_product,
    choose_truth,
)
from lartpc_ds.data.larcv3_writer import Larcv3Writer
from lartpc_ds.data.schema import EVENT_ID, EXTENTS, ID_EXTENTS, PARTICLE, VOXEL
from lartpc_ds.data.truth import PRIMARY, Primaries, interacting_neutrinos
from lartpc_ds.errors import UserError

__all__ = ["Larcv3Reader", "Larcv3Writer"]

_PRIMARY_AND_PROCESS = np.dtype([*PRIMARY.descr, ("process", PARTICLE["process"])])
_TRUTH_ROWS = 1_000_000
_SLOW_EVENTS = 10
"""If a chunk holds at least so many events, a note says that reading is slow."""

_NUMBER_OF_VOXELS = np.dtype([("number_of_voxels", "<u8", (2,))])


class Larcv3Reader:
    """A reader of the events of one file, by index.

    `product` and `truth` are the names inside `sparse2d_<product>_group` and `particle_<truth>_group`; "auto" chooses
    them as `choose_product` and `choose_truth` say. `truth` is None in a file without particles. `notes` are sentences
    that a user should know and that stop nothing. Raises UserError for every fault of the file's structure.
    """

    format = "larcv3"

    def __init__(self, path: Path, *, product: str = "auto", truth: str = "auto") -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._open_tables: tuple[Table, Table | None] | None = None
        self._process = -1
        with open_for_reading(self.path) as file:
            groups = child_names(file, "Data")
            self.product = choose_product(file.filename, groups, product)
            self.truth = choose_truth(file.filename, groups, truth)
            self._images = f"Data/sparse2d_{self.product}_group"
            self._truth_group = f"Data/particle_{self.truth}_group"
            self._event_ids, unset = checked_ids(Table(file, "Events/event_id", EVENT_ID).read())
            self.num_events = len(self._event_ids)
            if self.num_events == 0:
                raise UserError(f"{self.path}: Events/event_id has no events")
            self._voxel_extents, self.plane_shapes = self._read_planes(file)
            self._particle_extents = self._read_particle_extents(file) if self.truth else None
            slow = self._slow_chunks(Table(file, f"{self._images}/voxels", VOXEL).packed_rows)
            self.notes = tuple(filter(None, [unset, slow]))

    @property
    def num_planes(self) -> int:
        """The number of wire planes of each event."""
        return len(self.plane_shapes)

    @property
    def plane_numbers(self) -> tuple[int, ...]:
        """The file's own number of each plane."""
        return tuple(self._voxel_extents["ID"][0].tolist())

    def event_id(self, index: int) -> EventId:
        """The identity of event `index`, with the path as it was given; a number that nobody has set is -1."""
        assert 0 <= index < self.num_events, f"event {index} of {self.num_events}"
        run, subrun, event = self._event_ids[index].tolist()
        return EventId(str(self.path), index, run, subrun, event)

    def read(self, index: int) -> Event:
        """Event `index`, with unsorted ids sorted; raises UserError if its voxels are impossible."""
        voxels, _ = self._tables()
        identity = self.event_id(index)
        planes = []
        for shape, extent in zip(self.plane_shapes, self._voxel_extents[index], strict=True):
            first, count, plane = (int(extent[name]) for name in ("first", "N", "ID"))
            where = f"{self.path}: {self._images}/voxels, event {index}, plane {plane}"
            ids, values = checked_voxels(voxels.read(first, first + count, where), shape, where)
            planes.append(Plane(plane, shape, ids, values))
        return Event(identity, tuple(planes), self.particles(index))

    @property
    def num_voxels(self) -> NDArray[np.int64]:
        """The number of voxels of each event, which says what reading it costs."""
        count: NDArray[np.int64] = self._voxel_extents["N"].sum(axis=1, dtype=np.int64)
        return count

    def block(self, first: int, stop: int) -> Larcv3Block:
        """The block of events [first, stop)."""
        return Larcv3Block(self.path, self._images, self.plane_shapes, first, self._voxel_extents[first:stop])

    def particles(self, index: int) -> NDArray[np.void]:
        """The truth of event `index`: `schema.PARTICLE` rows, the primary first; empty in a file without truth."""
        _, table = self._tables()
        if table is None or self._particle_extents is None:
            return np.zeros(0, PARTICLE)
        first, count = (int(self._particle_extents[index][name]) for name in ("first", "N"))
        where = f"{self.path}: {self._truth_group}/particles, event {index}"
        rows = table.read(first, first + count, where)
        neutrino = np.flatnonzero(interacting_neutrinos(rows))[:1]
        return rows[np.r_[neutrino, np.delete(np.arange(count), neutrino)]]

    def primaries(self) -> Primaries:
        """The primary of every event, read in one pass; raises UserError if the file has no truth."""
        if self._particle_extents is None:
            raise UserError(f"{self.path}: there is no particle_<name>_group, so events have no labels; see data.truth")
        with open_for_reading(self.path) as file:
            table = Table(file, f"{self._truth_group}/particles", _PRIMARY_AND_PROCESS)
            rows, neutrinos = np.zeros(len(table), PRIMARY), [np.zeros(0, np.int64)]
            for start in range(0, len(table), _TRUTH_ROWS):
                part = table.read(start, start + _TRUTH_ROWS)
                for name in PRIMARY.names or ():
                    rows[name][start : start + _TRUTH_ROWS] = part[name]
                neutrinos.append(start + np.flatnonzero(interacting_neutrinos(part)))
        has_particle = self._particle_extents["N"] > 0
        first, count = (self._particle_extents[has_particle][name].astype(np.int64) for name in ("first", "N"))
        after = np.append(np.concatenate(neutrinos), len(rows))
        neutrino = after[np.searchsorted(after, first)] if len(first) else first
        return Primaries.of_rows(rows[np.where(neutrino < first + count, neutrino, first)], has_particle)

    def close(self) -> None:
        """Close this process's handle; the next read opens it again."""
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()
        self._handle = self._open_tables = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_open_tables": None}

    def _tables(self) -> tuple[Table, Table | None]:
        """Voxels and particles, opened once per process: a handle inherited by fork would share the parent's caches."""
        if self._handle is None or self._open_tables is None or self._process != os.getpid():
            self._handle, self._process = open_for_reading(self.path), os.getpid()
            voxels = Table(self._handle, f"{self._images}/voxels", VOXEL)
            particles = Table(self._handle, f"{self._truth_group}/particles", PARTICLE) if self.truth else None
            self._open_tables = voxels, particles
        return self._open_tables

    def _read_planes(self, file: h5py.File) -> tuple[NDArray[np.void], tuple[tuple[int, int], ...]]:
        """`voxel_extents` as (events, planes), with planes by ascending ID, and each plane's (wires, ticks)."""
        extents = Table(file, f"{self._images}/extents", EXTENTS).read()
        metas = Table(file, f"{self._images}/image_meta", _NUMBER_OF_VOXELS).read()
        voxel_extents = Table(file, f"{self._images}/voxel_extents", ID_EXTENTS).read()
        num_voxels = len(Table(file, f"{self._images}/voxels", VOXEL))
        where = f"{self.path}: {self._images}"
        if len(metas) != len(voxel_extents):
            raise UserError(
                f"{where}: image_meta has {len(metas)} rows, voxel_extents {len(voxel_extents)}; expected as many"
            )
        check_extents(extents, len(metas), self.num_events, f"{where}/extents", "event")
        check_extents(voxel_extents, num_voxels, len(voxel_extents), f"{where}/voxel_extents", "row")
        num_planes = int(extents["N"][0])
        check_same(extents["N"], num_planes, f"{where}/extents", "planes")
        if num_planes == 0:
            raise UserError(f"{where}/extents: event 0 has no planes")
        rows = extents["first"].astype(np.int64)[:, None] + np.arange(num_planes)
        rows = np.take_along_axis(rows, np.argsort(voxel_extents["ID"][rows], axis=1, kind="stable"), axis=1)
        plane_ids, shapes = voxel_extents["ID"][rows], metas["number_of_voxels"][rows]
        if len(set(plane_ids[0].tolist())) != num_planes:
            raise UserError(
                f"{where}/voxel_extents: event 0 has plane IDs {plane_ids[0].tolist()}; expected distinct ones"
            )
        check_same(plane_ids, plane_ids[0], f"{where}/voxel_extents", "plane IDs")
        check_same(shapes, shapes[0], f"{where}/image_meta", "number_of_voxels")
        if np.any(shapes[0] == 0) or np.any(shapes[0] >= 2**31):
            raise UserError(f"{where}/image_meta: impossible number_of_voxels {shapes[0].tolist()} in event 0")
        return voxel_extents[rows], tuple((int(wires), int(ticks)) for wires, ticks in shapes[0])

    def _slow_chunks(self, packed_rows: int) -> str:
        """A sentence about slow reading, where reading one event unpacks many; otherwise empty."""
        events = packed_rows * self.num_events // max(int(self.num_voxels.sum()), 1)
        if events < _SLOW_EVENTS:
            return ""
        return (
            f"{self._images}/voxels lies in chunks of {packed_rows} rows, about {min(events, self.num_events)} events "
            "each, and every read of an event unpacks a whole chunk; training will wait for it: repack the file with "
            f"h5repack -l {self._images}/voxels:CHUNK=1000 IN OUT"
        )

    def _read_particle_extents(self, file: h5py.File) -> NDArray[np.void]:
        extents = Table(file, f"{self._truth_group}/extents", EXTENTS).read()
        num_particles = len(Table(file, f"{self._truth_group}/particles", PARTICLE))
        check_extents(extents, num_particles, self.num_events, f"{self.path}: {self._truth_group}/extents", "event")
        return extents
