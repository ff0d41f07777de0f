"""Each way a file can be broken ends in one UserError that names the file, the group and the event if there is one."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lartpc_ds.data.larcv3 import Larcv3Reader
from lartpc_ds.errors import UserError

WIRE, TRUTH = "Data/sparse2d_wire_group", "Data/particle_mctruth_group"


def edit(table: str, row: int, field: str, value: object) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        rows = file[table][:]
        rows[field][row] = value
        file[table][:] = rows

    return apply


def delete(name: str) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        del file[name]

    return apply


def replace(name: str, rows: object) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        del file[name]
        file[name] = rows

    return apply


def shrink(name: str, num_rows: int) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        file[name].resize((num_rows,))

    return apply


# small.h5 holds 3 events of 2 planes (6 x 10 and 9 x 10) with 20 pixels each and 2 particles
STRUCTURE = {
    "no Data": (delete("Data"), r"group Data is missing"),
    "no images": (delete(WIRE), r"no sparse2d_<product>_group"),
    "no voxels": (delete(f"{WIRE}/voxels"), r"sparse2d_wire_group/voxels is missing"),
    "no extents": (delete(f"{WIRE}/extents"), r"sparse2d_wire_group/extents is missing"),
    "no metas": (delete(f"{WIRE}/image_meta"), r"sparse2d_wire_group/image_meta is missing"),
    "no event ids": (delete("Events/event_id"), r"Events/event_id is missing"),
    "no particles": (delete(f"{TRUTH}/particles"), r"particle_mctruth_group/particles is missing"),
    "no events": (shrink("Events/event_id", 0), r"Events/event_id has no events"),
    "group as table": (replace(f"{WIRE}/voxels/x", 1), r"voxels is missing"),
    "two dimensions": (replace(f"{WIRE}/voxels", np.zeros((3, 2))), r"voxels has 2 dimensions"),
    "no compound": (replace(f"{WIRE}/voxels", np.zeros(3)), r"voxels has the wrong type: float64"),
    "field missing": (replace(f"{WIRE}/voxels", np.zeros(3, [("id", "<u8")])), r"voxels .*no field value"),
    "field type": (
        replace(f"{WIRE}/voxels", np.zeros(3, [("id", "<u8"), ("value", "<f8")])),
        r"voxels .*field value is float64, expected float32",
    ),
    "signed ids": (
        replace(f"{WIRE}/voxels", np.zeros(3, [("id", "<i8"), ("value", "<f4")])),
        r"voxels .*field id is int64, expected uint64",
    ),
    "fewer extents": (shrink(f"{WIRE}/extents", 2), r"extents has 2 rows, expected 3"),
    "fewer particle extents": (shrink(f"{TRUTH}/extents", 2), r"mctruth_group/extents has 2 rows, expected 3"),
    "fewer metas": (shrink(f"{WIRE}/image_meta", 5), r"image_meta has 5 rows, voxel_extents 6"),
    "planes beyond": (edit(f"{WIRE}/extents", 2, "first", 5), r"wire_group/extents: event 2 points at 2 rows from 5"),
    "voxels beyond": (edit(f"{WIRE}/voxel_extents", 5, "N", 21), r"voxel_extents: row 5 points at 21 rows from 100"),
    "voxels cut": (shrink(f"{WIRE}/voxels", 119), r"voxel_extents: row 5 .*the table has 119"),
    "negative": (edit(f"{WIRE}/voxel_extents", 1, "first", 2**64 - 1), r"row 1 .*from 18446744073709551615"),
    "particles beyond": (edit(f"{TRUTH}/extents", 1, "N", 9), r"mctruth_group/extents: event 1 points at 9 rows"),
    "plane missing": (edit(f"{WIRE}/extents", 1, "N", 1), r"planes of event 1: 1, of event 0: 2"),
    "no planes": (edit(f"{WIRE}/extents", slice(None), "N", 0), r"event 0 has no planes"),
    "other plane": (edit(f"{WIRE}/voxel_extents", 3, "ID", 7), r"plane IDs of event 1: \[0, 7\]"),
    "same plane twice": (edit(f"{WIRE}/voxel_extents", 1, "ID", 0), r"event 0 has plane IDs \[0, 0\]"),
    "other size": (edit(f"{WIRE}/image_meta", 4, "number_of_voxels", (6, 11)), r"number_of_voxels of event 2"),
    "no size": (edit(f"{WIRE}/image_meta", slice(None), "number_of_voxels", 0), r"impossible number_of_voxels"),
}


@pytest.mark.parametrize("fault", STRUCTURE)
def test_broken_structure_is_found_at_opening(write_file, fault):
    path = write_file()
    break_it, message = STRUCTURE[fault]
    with h5py.File(path, "r+") as file:
        if fault == "group as table":
            del file[f"{WIRE}/voxels"]
            file[f"{WIRE}/voxels/x"] = 0
        break_it(file)
    with pytest.raises(UserError, match=message) as caught:
        Larcv3Reader(path)
    assert str(path) in str(caught.value)


# voxels 40 to 59 are event 1, plane 0
EVENT = {
    "id outside": (edit(f"{WIRE}/voxels", 59, "id", 60), r"voxel id 60 lies outside the 6 x 10 image"),
    "negative id": (edit(f"{WIRE}/voxels", 41, "id", 2**64 - 1), r"lies outside the 6 x 10 image"),
    "not a number": (edit(f"{WIRE}/voxels", 45, "value", np.nan), r"voxel 5 has the value nan"),
    "infinite": (edit(f"{WIRE}/voxels", 46, "value", -np.inf), r"voxel 6 has the value -inf"),
}


def assert_only_event_1_fails(path: Path, message: str, tables: str = "sparse2d_wire_group/voxels") -> None:
    reader = Larcv3Reader(path)
    with pytest.raises(UserError, match=message) as caught:
        reader.read(1)
    assert str(path) in str(caught.value) and tables in str(caught.value) and "event 1" in str(caught.value)
    assert reader.read(0).id.index == 0 and reader.read(2).id.index == 2
    reader.close()


@pytest.mark.parametrize("fault", EVENT)
def test_broken_event_is_found_at_reading(write_file, fault):
    path = write_file()
    break_it, message = EVENT[fault]
    with h5py.File(path, "r+") as file:
        break_it(file)
    assert_only_event_1_fails(path, message + "|" + message.replace("voxels", "voxels, event 1, plane 0"))


def test_repeated_ids_are_refused_sorted_or_not(write_file):
    path = write_file()
    with h5py.File(path, "r+") as file:
        voxels = file[f"{WIRE}/voxels"]
        rows = voxels[:]
        rows["id"][58] = rows["id"][40]
        voxels[:] = rows
        repeated = rows["id"][40]
    assert_only_event_1_fails(path, rf"event 1, plane 0: voxel id {repeated} occurs more than once")


def test_unsorted_ids_are_sorted_with_their_values(write_file, make_event):
    path = write_file()
    with h5py.File(path, "r+") as file:
        voxels = file[f"{WIRE}/voxels"]
        voxels[40:60] = voxels[40:60][::-1]
    reader = Larcv3Reader(path)
    np.testing.assert_array_equal(reader.read(1).planes[0].ids, make_event(1).planes[0].ids)
    np.testing.assert_array_equal(reader.read(1).planes[0].values, make_event(1).planes[0].values)
    reader.close()


def chunk_place(path: Path, table: str, row: int) -> tuple[int, int]:
    with h5py.File(path) as file:
        chunk = file[table].id.get_chunk_info_by_coord((row,))
        return chunk.byte_offset, chunk.size


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_damaged_chunk_in_the_middle(write_file):
    # 1000 voxels fill the first chunk: 50 events of 20 pixels on the one plane
    path = write_file(num_events=120, shapes=((6, 10),))
    offset, size = chunk_place(path, f"{WIRE}/voxels", 1000)
    overwrite(path, offset + size // 2, b"\xff" * (size // 2))
    reader = Larcv3Reader(path)
    assert reader.read(49).id.event == 49
    with pytest.raises(UserError, match=r"voxels, event 50, plane 0: cannot be read, the file is damaged") as caught:
        reader.read(50)
    assert str(path) in str(caught.value)
    assert caught.value.__suppress_context__
    assert reader.read(119).id.event == 119
    reader.close()


def test_damaged_truth_chunk(write_file):
    path = write_file()
    offset, size = chunk_place(path, f"{TRUTH}/particles", 0)
    overwrite(path, offset, b"\0" * size)
    reader = Larcv3Reader(path)
    with pytest.raises(UserError, match=r"mctruth_group/particles, event 2: cannot be read"):
        reader.read(2)
    with pytest.raises(UserError, match=r"mctruth_group/particles: cannot be read"):
        reader.primaries()
    reader.close()


def test_damaged_structure_chunk(write_file):
    path = write_file()
    offset, size = chunk_place(path, f"{WIRE}/voxel_extents", 0)
    overwrite(path, offset, b"\0" * size)
    with pytest.raises(UserError, match=r"wire_group/voxel_extents: cannot be read"):
        Larcv3Reader(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_file(write_file, share):
    path = write_file()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"small\.h5: (the file is truncated|not an HDF5 file)"):
        Larcv3Reader(path)


def test_every_single_zeroed_block_is_an_error_or_harmless(write_file, make_event):
    path = write_file()
    data = path.read_bytes()
    for start in range(0, len(data), 256):
        # a new inode: HDF5 knows an open file by its inode, and a reader that failed may still hold the last one
        path = path.with_name(f"{start}-small.h5")
        path.write_bytes(data[:start] + b"\0" * min(256, len(data) - start) + data[start + 256 :])
        try:
            reader = Larcv3Reader(path)
            for index in range(3):
                reader.read(index)
            reader.primaries()
            reader.close()
        except UserError as error:
            assert "small.h5" in str(error)


def test_file_that_is_being_written(write_file):
    path = write_file()
    with path.open("rb") as stream:
        # what HDF5 does while a file is open for writing
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"small\.h5: locked: another program is writing it.*hdf5_file_locking"):
            Larcv3Reader(path)


def test_not_hdf5_not_there_not_a_file(tmp_path):
    for name, content in (("text.h5", b"run,subrun,event\n"), ("empty.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: (not an HDF5 file|the file is truncated)"):
            Larcv3Reader(tmp_path / name)
    with pytest.raises(UserError, match=r"absent\.h5: no such file"):
        Larcv3Reader(tmp_path / "absent.h5")
    with pytest.raises(UserError, match="not a file"):
        Larcv3Reader(tmp_path)
