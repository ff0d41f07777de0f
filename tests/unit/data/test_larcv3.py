import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from lartpc_ds.data.event import Event, EventId
from lartpc_ds.data.larcv3 import Larcv3Reader, Larcv3Writer
from lartpc_ds.errors import UserError

REAL = "sbnd_2events_larcv3.h5"


def assert_same(read: Event, written: Event) -> None:
    assert [plane.plane for plane in read.planes] == [plane.plane for plane in written.planes]
    for ours, theirs in zip(read.planes, written.planes, strict=True):
        assert ours.shape == theirs.shape
        assert ours.ids.dtype == np.int64 and ours.values.dtype == np.float32
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.values, theirs.values)
    assert read.particles.dtype == written.particles.dtype
    assert read.particles.tolist() == written.particles.tolist()


def test_real_events_as_documented(real_events):
    # counts, sums, largest value, first and last id of the file's README
    expected = {
        (0, 0): (23223, 498283.849, 366.1020, 40786, 2581675),
        (0, 1): (23171, 507628.176, 441.4287, 39718, 2580822),
        (0, 2): (10084, 463207.088, 448.7843, 244621, 2376304),
        (1, 0): (25094, 623114.674, 1254.7910, 40339, 2581669),
        (1, 1): (23599, 657602.586, 480.5552, 39702, 2581044),
        (1, 2): (10191, 617714.225, 2771.7922, 245649, 2376903),
    }
    reader = Larcv3Reader(real_events / REAL)
    assert (reader.product, reader.truth, reader.num_events) == ("sbndwire", "sbndneutrino", 2)
    assert reader.plane_shapes == ((2048, 1280),) * 3
    found = {}
    for index in range(2):
        event = reader.read(index)
        assert event.id == EventId(str(real_events / REAL), index, -1, -1, -1)
        for plane in event.planes:
            total = round(plane.values.sum(dtype=np.float64), 3)
            largest = pytest.approx(plane.values.max(), abs=1e-4)
            found[index, plane.plane] = (len(plane.ids), total, largest, plane.ids[0], plane.ids[-1])
    assert found == expected
    reader.close()


def test_real_truth(real_events):
    reader = Larcv3Reader(real_events / REAL)
    primaries = reader.primaries()
    assert primaries.pdg.tolist() == [14, 12]
    assert primaries.current_type.tolist() == [0, 0]
    np.testing.assert_allclose(primaries.energy_gev, [1.390174, 1.002261], atol=1e-6)
    np.testing.assert_allclose(primaries.momentum_gev, primaries.energy_gev, rtol=1e-6)
    assert [len(reader.particles(index)) for index in range(2)] == [6, 5]
    assert reader.particles(0)["process"][0] == b"primary"
    reader.close()


def layout(path: Path, images: str, particles: str) -> dict[str, object]:
    tables = {"ids": "Events/event_id"}
    tables |= {name: f"{images}/{name}" for name in ("extents", "image_meta", "voxel_extents", "voxels")}
    tables |= {"truth": f"{particles}/extents", "particles": f"{particles}/particles"}
    found = {}
    with h5py.File(path) as file:
        for name, table in tables.items():
            dataset = file[table]
            filters = (dataset.compression, dataset.compression_opts, dataset.shuffle, dataset.fletcher32)
            fields = [(field, *dataset.dtype.fields[field][:2]) for field in dataset.dtype.names]
            found[name] = (fields, dataset.dtype.itemsize, dataset.chunks, dataset.maxshape, filters)
    return found


def test_written_layout_is_larcv3s(real_events, write_file):
    real = layout(real_events / REAL, "Data/sparse2d_sbndwire_group", "Data/particle_sbndneutrino_group")
    assert layout(write_file(), "Data/sparse2d_wire_group", "Data/particle_mctruth_group") == real


def test_real_events_survive_a_copy(real_events, tmp_path):
    reader = Larcv3Reader(real_events / REAL)
    with Larcv3Writer(tmp_path / "copy.h5", product="sbndwire", truth="sbndneutrino") as writer:
        for index in range(2):
            writer.write(reader.read(index))
    copy = Larcv3Reader(tmp_path / "copy.h5")
    with h5py.File(tmp_path / "copy.h5") as ours, h5py.File(real_events / REAL) as theirs:
        for name in ("extents", "image_meta", "voxel_extents", "voxels"):
            table = f"Data/sparse2d_sbndwire_group/{name}"
            for field in theirs[table].dtype.names:
                np.testing.assert_array_equal(ours[table][field], theirs[table][field])
    for index in range(2):
        assert_same(copy.read(index), reader.read(index))
    reader.close()
    copy.close()


def test_round_trip_over_many_flushes(tmp_path, make_event, monkeypatch):
    monkeypatch.setattr("lartpc_ds.data.larcv3_writer._FLUSH_EVENTS", 4)
    events = [make_event(number) for number in range(11)]
    with Larcv3Writer(tmp_path / "out.h5") as writer:
        for event in events:
            writer.write(event)
    reader = Larcv3Reader(tmp_path / "out.h5")
    assert reader.num_events == 11 and reader.plane_shapes == ((6, 10), (9, 10))
    for index in (10, 0, 3, 4, 7):
        event = reader.read(index)
        assert_same(event, events[index])
        assert event.id == EventId(str(tmp_path / "out.h5"), index, 1, 0, index)
    reader.close()


def test_events_without_particles_or_pixels(tmp_path, make_event):
    full, empty = make_event(0), make_event(1, num_pixels=0)
    empty = Event(empty.id, empty.planes, empty.particles[:0])
    with Larcv3Writer(tmp_path / "out.h5") as writer:
        for event in (empty, full, empty):
            writer.write(event)
    reader = Larcv3Reader(tmp_path / "out.h5")
    assert_same(reader.read(2), empty)
    primaries = reader.primaries()
    assert primaries.has_particle.tolist() == [False, True, False]
    assert primaries.pdg.tolist() == [0, 13, 0] and primaries.current_type.tolist() == [-1, -1, -1]
    np.testing.assert_allclose(primaries.momentum_gev, [np.nan, 0.3, np.nan])
    reader.close()


def test_writer_refuses_an_existing_file(tmp_path):
    path = tmp_path / "out.h5"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        Larcv3Writer(path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_writer_does_not_replace_a_file_that_appeared_meanwhile(tmp_path, make_event):
    path = tmp_path / "out.h5"
    with pytest.raises(UserError, match="not overwritten"), Larcv3Writer(path) as writer:
        writer.write(make_event(0))
        path.write_text("precious")
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_writer_leaves_nothing_after_an_error(tmp_path, make_event):
    with pytest.raises(KeyboardInterrupt), Larcv3Writer(tmp_path / "out.h5") as writer:
        writer.write(make_event(0))
        assert (tmp_path / "out.h5.partial").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_writer_names_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"folder .*absent does not exist"):
        Larcv3Writer(tmp_path / "absent" / "out.h5")


def test_pickled_reader_reads(write_file, make_event):
    reader = Larcv3Reader(write_file())
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert_same(copy.read(2), make_event(2))
    copy.close()


def _read_sum(reader: Larcv3Reader, index: int) -> float:
    return float(reader.read(index).planes[0].values.sum())


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_reader_in_worker_processes(write_file, method):
    reader = Larcv3Reader(write_file())
    expected = [_read_sum(reader, index) for index in range(3)]
    # the parent's handle is open while the workers start, as with a DataLoader
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_read_sum, [(reader, index) for index in range(3)]) == expected
    reader.close()


def rename(path: Path, group: str, new: str) -> None:
    with h5py.File(path, "r+") as file:
        file.move(f"Data/{group}", f"Data/{new}")


def copy_group(path: Path, group: str, new: str) -> None:
    with h5py.File(path, "r+") as file:
        file.copy(f"Data/{group}", f"Data/{new}")


WIRE, TRUTH = "sparse2d_wire_group", "particle_mctruth_group"


def test_product_is_chosen(write_file):
    path = write_file()
    copy_group(path, WIRE, "sparse2d_sbndwire_group")
    assert Larcv3Reader(path).product == "wire"
    assert Larcv3Reader(path, product="sbndwire").product == "sbndwire"
    rename(path, WIRE, "sparse2d_seg_group")
    assert Larcv3Reader(path).product == "sbndwire"
    copy_group(path, "sparse2d_seg_group", "sparse2d_ubwire_group")
    with pytest.raises(UserError, match=r"among sbndwire, ubwire; set data\.product .*--product"):
        Larcv3Reader(path)
    with pytest.raises(UserError, match=r"no 'raw'; set data\.product .* one of: sbndwire, seg, ubwire"):
        Larcv3Reader(path, product="raw")


def test_the_only_product_is_chosen_and_several_are_not(write_file):
    path = write_file()
    rename(path, WIRE, "sparse2d_adc_group")
    assert Larcv3Reader(path).product == "adc"
    copy_group(path, "sparse2d_adc_group", "sparse2d_seg_group")
    assert Larcv3Reader(path).product == "adc"
    copy_group(path, "sparse2d_adc_group", "sparse2d_charge_group")
    with pytest.raises(UserError, match="cannot choose among adc, charge"):
        Larcv3Reader(path)


def test_truth_is_chosen(write_file):
    path = write_file()
    copy_group(path, TRUTH, "particle_sbndneutrino_group")
    assert Larcv3Reader(path).truth == "mctruth"
    rename(path, TRUTH, "particle_corsika_group")
    assert Larcv3Reader(path).truth == "sbndneutrino"
    rename(path, "particle_sbndneutrino_group", "particle_gun_group")
    with pytest.raises(UserError, match=r"among corsika, gun; set data\.truth"):
        Larcv3Reader(path)
    assert Larcv3Reader(path, truth="gun").truth == "gun"


def test_file_without_truth_reads_but_has_no_labels(write_file):
    path = write_file()
    with h5py.File(path, "r+") as file:
        del file[f"Data/{TRUTH}"]
    reader = Larcv3Reader(path)
    assert reader.truth is None
    assert len(reader.read(0).particles) == 0
    with pytest.raises(UserError, match=r"no particle_.*data\.truth"):
        reader.primaries()
    reader.close()


def test_planes_are_ordered_by_id(write_file, make_event):
    path = write_file()
    with h5py.File(path, "r+") as file:
        for name in ("voxel_extents", "image_meta"):
            table = file[f"Data/{WIRE}/{name}"]
            table[2:4] = table[2:4][::-1]
    reader = Larcv3Reader(path)
    assert_same(reader.read(1), make_event(1))
    reader.close()


def test_packed_and_wider_types_read_by_name(write_file, make_event):
    path = write_file()
    with h5py.File(path, "r+") as file:
        name = f"Data/{WIRE}/voxels"
        rows = file[name][:]
        del file[name]
        other = np.zeros(len(rows), [("value", ">f4"), ("flag", "u1"), ("id", "<u8")])
        other["id"], other["value"] = rows["id"], rows["value"]
        file[name] = other
    reader = Larcv3Reader(path)
    assert_same(reader.read(1), make_event(1))
    reader.close()
