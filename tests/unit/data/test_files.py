import os
import pickle

import numpy as np
import pytest

from lartpc_ds.data.files import EventFiles, expand, make_reader, open_files
from lartpc_ds.errors import UserError


def test_expand_sorts_and_drops_repeats(tmp_path, monkeypatch):
    for name in ("b.h5", "a.h5", "sub/c.h5", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in expand(["b.h5", "*.h5", str(tmp_path / "b.h5")])] == ["a.h5", "b.h5"]
    assert [path.name for path in expand([f"{tmp_path}/**/*.h5"])] == ["a.h5", "b.h5", "c.h5"]


def test_expand_takes_a_name_with_brackets_literally(tmp_path):
    (tmp_path / "run[1].h5").touch()
    assert expand([f"{tmp_path}/run[1].h5"]) == [tmp_path / "run[1].h5"]


def test_expand_names_what_matches_nothing(tmp_path):
    with pytest.raises(UserError, match=r"data\.files: '.*none\*\.h5' matches no file"):
        expand([f"{tmp_path}/none*.h5"])
    with pytest.raises(UserError, match=r"it is a folder, did you mean .*/\*\.h5"):
        expand([str(tmp_path)])
    with pytest.raises(UserError, match=r"data\.files: no file given"):
        expand([])


def test_events_are_addressed_across_files(write_file, make_event):
    for name, num_events, first in (("b.h5", 3, 10), ("a.h5", 2, 0), ("c.h5", 1, 20)):
        write_file(name, num_events, first)
    files = open_files([str(write_file("d.h5", 1, 30).parent / "*.h5")])
    assert len(files) == 7
    assert [files.locate(position) for position in range(7)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
    numbers = [0, 1, 10, 11, 12, 20, 30]
    assert [event.event for event in files.event_ids()] == numbers
    for position in (6, 0, 3):
        event = files.read(position)
        assert event.id == files.event_ids()[position]
        np.testing.assert_array_equal(event.planes[1].ids, make_event(numbers[position]).planes[1].ids)
    assert files.primaries().pdg.tolist() == [13] * 7
    assert (files.num_planes, files.largest_plane) == (2, (9, 10))
    files.close()


def num_open_files(folder) -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(folder)) for link in links)


def test_only_so_many_files_stay_open(write_file, monkeypatch):
    monkeypatch.setattr("lartpc_ds.data.files._MAX_OPEN_FILES", 2)
    for number in range(5):
        folder = write_file(f"{number}.h5", 1, number).parent
    files = open_files([f"{folder}/*.h5"])
    assert num_open_files(folder) == 0
    for position in (0, 1, 2, 3, 4, 4, 3, 0):
        assert files.read(position).id.event == position
        assert num_open_files(folder) <= 2
    copy = pickle.loads(pickle.dumps(files))
    files.close()
    assert num_open_files(folder) == 0
    assert copy.read(2).id.event == 2
    copy.close()


def test_files_of_two_detectors_do_not_mix(write_file):
    two, one = write_file("two.h5"), write_file("one.h5", shapes=((6, 10),))
    with pytest.raises(UserError, match=r"two\.h5 has 2 planes, .*one\.h5 has 1"):
        EventFiles([make_reader(one), make_reader(two)])


def test_unknown_format(write_file):
    with pytest.raises(UserError, match=r"data\.format: 'root' is unknown; expected one of: auto, larcv3"):
        make_reader(write_file(), format="root")
