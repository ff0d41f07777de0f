"""Odd files of the field, each rebuilt small: what is not what it seems is named, never trained on in silence."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lartpc_ds.data.event import Event
from lartpc_ds.data.files import notes_of, open_files
from lartpc_ds.data.labels import label_classes, truth_names
from lartpc_ds.data.larcv3 import Larcv3Reader, Larcv3Writer
from lartpc_ds.data.schema import PARTICLE
from lartpc_ds.data.truth import Primaries
from lartpc_ds.errors import UserError
from lartpc_ds.report.inspect import inspect_files

WIRE, VOXELS = "Data/sparse2d_wire_group", "Data/sparse2d_wire_group/voxels"


def rename_product(path: Path, *names: str) -> None:
    """The wires of the file under each of the names instead."""
    with h5py.File(path, "r+") as file:
        for name in names:
            file.copy(WIRE, f"Data/sparse2d_{name}_group")
        del file[WIRE]


@pytest.mark.parametrize("label", ["segment", "sbnd_cosmicseg", "wire_label", "instance", "mask"])
def test_what_is_not_named_like_wires_is_never_chosen(write_file, label):
    path = write_file()
    rename_product(path, label)
    with h5py.File(path, "r+") as file:
        file.create_group("Data/image2d_wire_group")
    message = (
        rf"small\.h5: no sparse2d product is named like wire.* image2d_wire, .*sparse2d_{label};.*no dense images.*"
    )
    with pytest.raises(UserError, match=message + rf"if {label} is meant, set data\.product .*--product"):
        Larcv3Reader(path)
    assert Larcv3Reader(path, product=label).product == label


@pytest.mark.parametrize("wires", ["adc", "charge", "tpc_wires", "rawdigit", "simwire"])
def test_wires_beside_labels_are_chosen(write_file, wires):
    path = write_file()
    rename_product(path, wires, "segment")
    assert Larcv3Reader(path).product == wires


def test_labels_beside_dense_wires_of_larcv_itself(real_events):
    path = real_events / "larcv_written" / "image2d_and_sparse_label.h5"
    with pytest.raises(UserError, match=r"the file has image2d_wire, particle_mctruth, sparse2d_segment; this version"):
        Larcv3Reader(path)


@pytest.mark.parametrize("kind", ["image2d", "cluster2d"])
def test_files_of_larcv_itself_without_sparse_images_say_what_is_there(real_events, kind):
    path = real_events / "larcv_written" / f"{kind}.h5"
    message = (
        rf"{kind}\.h5: Data has no sparse2d.*the file has .*{kind}_wire.*; this version reads sparse2d alone, no dense"
    )
    with pytest.raises(UserError, match=message):
        Larcv3Reader(path)
    (problem,) = inspect_files([str(path)])["problems"]
    assert f"{kind}_wire" in problem


def test_neutral_currents_are_no_flavour():
    pdg, current = np.array([[14, 1], [14, 0], [12, 0], [13, 1]]).T
    primaries = Primaries(pdg, current, *[np.ones(4)] * 2, np.ones(4, np.bool_))
    with pytest.raises(
        UserError, match=r"data\.classes\.numu: 1 of its 2 events are neutral-current.*labels = 'neutrino'"
    ):
        label_classes(primaries, "particle", {"nue": [12, -12], "numu": [14, -14]})
    both = {"neutrino": [12, -12, 14, -14], "muon": [13]}
    assert label_classes(primaries, "particle", both).tolist() == [0, 0, 0, 1], "a class of every flavour"
    assert label_classes(primaries, "particle", {"nue": [12]}).tolist() == [-1, -1, 0, -1]
    assert label_classes(primaries, "neutrino", ["nue", "numu", "nc"]).tolist() == [2, 1, 0, -1]


def particles(*rows: tuple[int, int, bytes]) -> np.ndarray:
    found = np.zeros(len(rows), PARTICLE)
    found["pdg"], found["current_type"], found["process"] = (list(column) for column in zip(*rows, strict=True))
    found["trackid"] = np.arange(len(rows))
    return found


def test_the_neutrino_need_not_come_first(tmp_path, make_event):
    muon, proton = (13, -1, b"primary"), (2212, -1, b"primary")
    truths = [
        particles(muon, proton, (14, 0, b"primary")),
        particles(proton, (12, 1, b""), muon),
        particles(muon, (-14, -1, b"Decay"), (12, -1, b"Decay")),
        particles(muon, (14, 0, b"Decay")),  # a writer that leaves the current at 0
        particles(muon)[:0],
        particles((22, -1, b"primary")),
    ]
    with Larcv3Writer(tmp_path / "a.h5") as writer:
        for number, truth in enumerate(truths):
            event = make_event(number)
            writer.write(Event(event.id, event.planes, truth))
    reader = Larcv3Reader(tmp_path / "a.h5")
    assert truth_names(reader.primaries()) == ["numu", "nc", "muon", "muon", "cosmic", "gamma"]
    assert reader.read(0).particles["trackid"].tolist() == [2, 0, 1], "the primary first"
    assert [reader.read(index).particles["pdg"].tolist() for index in (2, 4)] == [[13, -14, 12], []]
    reader.close()
    labels = [event["label"] for event in inspect_files([str(tmp_path / "a.h5")])["events"]]
    assert labels == ["numu", "nc", "muon", "muon", "cosmic", "gamma"]


@pytest.mark.parametrize("swmr", [False, True])
def test_a_file_whose_writer_crashed_names_h5clear(tmp_path, swmr):
    with h5py.File(tmp_path / "written.h5", "w", libver="latest") as file:
        file["Events/event_id"] = np.arange(3)
        if swmr:
            file.swmr_mode = True
        file.flush()
        shutil.copy(tmp_path / "written.h5", tmp_path / "crashed.h5")
    with pytest.raises(UserError, match=r"crashed\.h5: was not closed .* h5clear -s .*crashed\.h5"):
        Larcv3Reader(tmp_path / "crashed.h5")


def test_a_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "events.h5"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 27900000\n")
    with pytest.raises(UserError, match=r"events\.h5: is a Git LFS pointer.*git lfs pull"):
        Larcv3Reader(path)


def pack_with(path: Path, table: str, code: int, *, written: bool) -> None:
    """Give the table the filter `code`, in which its one chunk is packed if `written`."""
    with h5py.File(path, "r+") as file:
        rows = file[table][:]
        del file[table]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((len(rows),))
        properties.set_filter(code, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((len(rows),))
        kind = h5py.h5t.py_create(rows.dtype, logical=True)
        dataset = h5py.h5d.create(file.id, table.encode(), kind, space, dcpl=properties)
        dataset.write_direct_chunk((0,), rows.tobytes(), 0 if written else 1)


@pytest.mark.parametrize("table", [VOXELS, f"{WIRE}/extents"])
def test_a_filter_without_its_plugin_is_named(write_file, table):
    path = write_file()
    pack_with(path, table, 32999, written=True)
    with pytest.raises(UserError, match=rf"{table} is packed with filter 32999 .*HDF5_PLUGIN_PATH.*h5repack -f GZIP=1"):
        Larcv3Reader(path)


def test_a_filter_that_no_chunk_used_does_not_matter(write_file, make_event):
    path = write_file()
    pack_with(path, VOXELS, 32999, written=False)
    reader = Larcv3Reader(path)
    np.testing.assert_array_equal(reader.read(2).planes[1].values, make_event(2).planes[1].values)
    reader.close()


def test_a_chunk_of_many_events_is_said_to_be_slow(write_file):
    path = write_file(num_events=20)
    with h5py.File(path, "r+") as file:
        rows = file[VOXELS][:]
        del file[VOXELS]
        file.create_dataset(VOXELS, data=rows, maxshape=(None,), chunks=(1_000_000,), compression="gzip")
    (note,) = notes_of(open_files([str(path)]).readers)
    assert f"{VOXELS} lies in chunks of 1000000 rows, about 20 events each" in note and "h5repack -l" in note
    assert inspect_files([str(path)])["notes"] == [note]
    with h5py.File(path, "r+") as file:  # as large, but HDF5 reads just the rows that are asked for
        del file[VOXELS]
        file.create_dataset(VOXELS, data=rows, maxshape=(None,), chunks=(1_000_000,))
    assert notes_of(open_files([str(path)]).readers) == []
    assert notes_of(open_files([str(write_file("small_chunks.h5", 20))]).readers) == []
