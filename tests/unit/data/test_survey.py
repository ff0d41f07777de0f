"""What a look at every event finds before training."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from lartpc_ds.data.files import EventFiles, open_files
from lartpc_ds.data.images import Preprocessing, densify
from lartpc_ds.data.larcv3 import Larcv3Reader
from lartpc_ds.data.lit_shares import Cells, Cut, Reach
from lartpc_ds.data.survey import (
    EXTENT,
    LIT,
    Survey,
    absurd_values,
    check_survey,
    describe_isolated,
    describe_values,
    survey,
)
from lartpc_ds.errors import UserError

VOXELS = "Data/sparse2d_wire_group/voxels"


def edit(path: Path, row: int, field: str, value: float) -> None:
    with h5py.File(path, "r+") as file:
        rows = file[VOXELS][:]
        rows[field][row] = value
        file[VOXELS][:] = rows


def seen(*paths: Path, workers: int = 1) -> tuple[Survey, EventFiles]:
    files = open_files([str(path) for path in paths])
    return survey(files.readers, np.ones(len(files), np.bool_), workers), files


def assert_as_read(look: Survey, files: EventFiles) -> None:
    for position in range(len(files)):
        if position in look.faults:
            with pytest.raises(UserError) as caught:
                files.read(position)
            assert str(caught.value) == look.faults[position]
            assert look.extents[position]["pixels"].tolist() == [0, 0] and look.digests[position] == b""
            continue
        for plane, extent in zip(files.read(position).planes, look.extents[position], strict=True):
            assert extent["pixels"] == np.count_nonzero(plane.values)
            assert extent["charge"] == pytest.approx(plane.values.sum(dtype=np.float64))
            assert extent["lowest"] == plane.values.min(initial=np.inf if len(plane.values) else 0)
            assert extent["highest"] == plane.values.max(initial=-np.inf if len(plane.values) else 0)


@pytest.fixture
def three_files(write_file) -> list[Path]:
    return [write_file("a.h5", 5), write_file("b.h5", 4, first=5, num_pixels=0), write_file("c.h5", 6, first=9)]


@pytest.mark.parametrize("block_voxels", [1, 50, 10**6])
def test_a_survey_is_what_reading_each_event_gives(three_files, monkeypatch, block_voxels):
    monkeypatch.setattr("lartpc_ds.data.survey._BLOCK_VOXELS", block_voxels)
    edit(three_files[0], 45, "id", 60)  # event 1, plane 0
    edit(three_files[2], 121, "value", np.nan)  # event 3, plane 0
    look, files = seen(*three_files)
    assert sorted(look.faults) == [1, 12]
    assert_as_read(look, files)
    assert len(set(look.digests.tolist())) == 15 - 2 - 4 + 1, "empty and damaged events have none"


def test_a_damaged_chunk_hides_no_other_event(write_file):
    path = write_file(num_events=60)
    with h5py.File(path) as file:  # 1000 voxels a chunk, 40 an event
        chunk = file[VOXELS].id.get_chunk_info_by_coord((1000,))
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 50 : chunk.byte_offset + chunk.size] = bytes(chunk.size - 50)
    path.write_bytes(data)
    look, files = seen(path)
    assert sorted(look.faults) == list(range(25, 50))
    assert_as_read(look, files)


def test_planes_out_of_order_and_unsorted_voxels(write_file):
    path = write_file()
    with h5py.File(path, "r+") as file:
        for name in ("voxel_extents", "image_meta"):
            table = file[f"Data/sparse2d_wire_group/{name}"]
            table[2:4] = table[2:4][::-1]
        file[VOXELS][40:60] = file[VOXELS][40:60][::-1]
    assert_as_read(*seen(path))


def test_processes_see_the_same(three_files, monkeypatch):
    monkeypatch.setattr("lartpc_ds.data.survey._PARALLEL_VOXELS", 0)
    passed: list[int] = []
    files = open_files([str(path) for path in three_files])
    many = survey(files.readers, np.ones(15, np.bool_), 2, passed.append)
    alone, _ = seen(*three_files)
    np.testing.assert_array_equal(many.extents, alone.extents)
    np.testing.assert_array_equal(many.digests, alone.digests)
    assert passed == [5, 9, 15]


def test_events_that_are_not_used_are_not_looked_at(three_files, monkeypatch):
    reads: list[tuple[int, int]] = []
    block = Larcv3Reader.block
    monkeypatch.setattr(Larcv3Reader, "block", lambda self, *range: reads.append(range) or block(self, *range))
    edit(three_files[0], 45, "id", 60)
    files = open_files([str(path) for path in three_files])
    wanted = np.zeros(15, np.bool_)
    wanted[[0, 2]] = True
    look = survey(files.readers, wanted)
    assert reads == [(0, 5)] and look.faults == {}
    assert (look.extents["pixels"].sum(axis=1) > 0).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e38, r"small\.h5: event 1, plane 0 holds the value 1e\+38; expected at most 1e\+09 .*data\.saturate"),
        (-1e38, r"small\.h5: event 1, plane 0 holds the value -1e\+38; expected at most 1e\+09 .*data\.threshold"),
        (np.nan, r"small\.h5: .*voxels, event 1, plane 0: voxel 5 has the value nan"),
        (np.inf, r"small\.h5: .*voxels, event 1, plane 0: voxel 5 has the value inf"),
    ],
)
def test_an_absurd_value_is_named_before_training(write_file, value, message):
    path = write_file()
    edit(path, 45, "value", value)
    look, files = seen(path)
    with pytest.raises(UserError, match=message):
        check_survey(look, files, None, 0.0)
    if np.isfinite(value):
        assert absurd_values(look, files.readers[0]) == [
            f"{path}: event 1, plane 0 holds the value {np.float32(value):g}; expected at most 1e+09"
        ]
        check_survey(look, files, 1.0 if value > 0 else None, float(value < 0))  # the keys that the message names


def test_fp16_cannot_hold_what_fp32_can(write_file):
    path = write_file()
    edit(path, 45, "value", 1e5)
    look, files = seen(path)
    check_survey(look, files, None, 0.0)
    with pytest.raises(UserError, match=r"value 100000; expected at most 65504, the largest number of fp16"):
        check_survey(look, files, None, 0.0, 65504.0)


def test_what_is_said_of_sound_values(write_file):
    path = write_file(num_events=4)
    edit(path, 45, "value", 3e7)
    edit(path, 81, "value", -3)
    look, files = seen(path, write_file("without.h5", 2, first=4, num_pixels=0))
    lines = describe_values(look, files, np.ones(6, np.bool_))
    low, high = look.extents["lowest"][:4], look.extents["highest"][:4]
    assert lines[:3] == [
        f"pixels hold -3 to 3e+07 in plane 0, {low[:, 1].min():.6g} to {high[:, 1].max():.6g} in plane 1",
        "2 of 6 events have no pixel",
        f"{np.sum(low.min(axis=1) < 0)} of 6 events have negative pixels",
    ]
    assert len(lines) == 4
    assert "event 1, plane 0 holds the value 3e+07" in lines[3] and "times the median" in lines[3]


@pytest.mark.parametrize("block_voxels", [50, 10**6])
@pytest.mark.parametrize(("parallel_voxels", "workers"), [(10**9, 1), (0, 2)])
def test_what_isolated_drops_is_the_difference_of_the_images(
    three_files, monkeypatch, block_voxels, parallel_voxels, workers
):
    monkeypatch.setattr("lartpc_ds.data.survey._BLOCK_VOXELS", block_voxels)
    monkeypatch.setattr("lartpc_ds.data.survey._PARALLEL_VOXELS", parallel_voxels)
    edit(three_files[2], 121, "value", np.nan)  # event 12
    pre = Preprocessing((9, 10), (1, 2), threshold=20, isolated=5, saturate=40)
    files = open_files([str(path) for path in three_files])
    wanted = np.arange(15) != 1
    look = survey(files.readers, wanted, workers, pre=pre)
    for position in range(15):
        if position in (1, 12):
            assert look.lit[position].tolist() == [(0, 0.0, 0, 0.0)] * 2
            continue
        before, after = (
            densify(files.read(position), Preprocessing((9, 10), (1, 2), 20, fewest, 40)) for fewest in (0, 5)
        )
        expected = [before != 0, before, (before != 0) & (after == 0), before - after]
        for name, image in zip(LIT.names, expected, strict=True):
            np.testing.assert_allclose(look.lit[position][name], image.sum(axis=(1, 2), dtype=np.float64), rtol=1e-6)
    assert 0 < look.lit["isolated"].sum() < look.lit["pixels"].sum()
    assert not seen(*three_files)[0].lit["pixels"].any(), "nothing is counted where isolated is off"


@pytest.mark.parametrize("isolated", [0, 2])
@pytest.mark.parametrize(("parallel_voxels", "workers"), [(10**9, 1), (0, 2)])
def test_shares_are_those_of_the_images(three_files, monkeypatch, isolated, parallel_voxels, workers):
    monkeypatch.setattr("lartpc_ds.data.survey._BLOCK_VOXELS", 50)
    monkeypatch.setattr("lartpc_ds.data.survey._PARALLEL_VOXELS", parallel_voxels)
    pre = Preprocessing((9, 10), threshold=26, isolated=isolated)
    cut = Cut((9, 10), (4, 4), (Reach(0, 1, 2, 3),))
    files = open_files([str(path) for path in three_files])
    wanted = np.arange(15) != 1
    look = survey(files.readers, wanted, workers, pre=pre, cut=cut)
    for position in range(15):
        lit = (densify(files.read(position), pre) != 0).any(0)
        expected = cut.shares(Cells.of_bits(lit[None])) if wanted[position] else [0, 0]
        assert look.shares[position].tolist() == expected
    assert len({*look.shares[:, 0].tolist()}) > 3
    assert look.lit["pixels"].any() == (isolated > 0)
    assert look.part(3, 7).shares.tolist() == look.shares[3:7].tolist()
    assert survey(files.readers, wanted, pre=pre).shares.shape == (15, 0)


def test_both_lobes_of_a_pulse_are_charge(write_file):
    path = write_file(num_events=1)
    with h5py.File(path, "r+") as file:
        rows = file[VOXELS][:]
        rows["value"] = np.where(np.arange(len(rows)) % 2, -4, 4)
        file[VOXELS][:] = rows
    files = open_files([str(path)])
    look = survey(files.readers, np.ones(1, np.bool_), pre=Preprocessing((9, 10), isolated=25))
    assert look.lit["charge"].tolist() == look.lit["isolated_charge"].tolist() == [[80, 80]]


def lit_pixels_of(*events: tuple[int, float, int, float]) -> Survey:
    """A survey of events of one plane each that says only what `LIT` has."""
    lit = np.array(list(events), LIT).reshape(-1, 1)
    return Survey(np.zeros(lit.shape, EXTENT), lit, np.zeros(len(lit), "S16"), {}, np.zeros((len(lit), 0)))


def test_what_is_said_of_isolated_pixels():
    some = lit_pixels_of((100, 500.0, 40, 10.0), (50, 500.0, 20, 11.0), (0, 0.0, 0, 0.0))
    assert describe_isolated([some], 3) == "data.isolated = 3 drops 40 % of the lit pixels with 2.1 % of the charge"
    gone = lit_pixels_of((3, 9.0, 3, 9.0))
    assert describe_isolated([some, gone], 3) == (
        "data.isolated = 3 drops 41.2 % of the lit pixels with 2.97 % of the charge, and leaves 1 of 3 events without "
        "a lit pixel"
    )
    assert "drops 100 % of the lit pixels with 100 % of the charge" in describe_isolated([gone], 3)
    assert describe_isolated([lit_pixels_of((0, 0.0, 0, 0.0))], 3) == (
        "data.isolated = 3 drops nothing, because no pixel is lit after data.threshold"
    )
