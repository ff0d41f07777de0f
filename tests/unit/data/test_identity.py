"""Who an event is, and which events occur twice."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from lartpc_ds.data.duplicates import describe_duplicates, first_of_each, refuse_duplicates
from lartpc_ds.data.event import EventId
from lartpc_ds.data.event_index import build_index
from lartpc_ds.data.files import notes_of, open_files
from lartpc_ds.data.images import Preprocessing
from lartpc_ds.data.larcv3 import Larcv3Reader
from lartpc_ds.data.schema import EVENT_ID
from lartpc_ds.data.source import EventSource
from lartpc_ds.data.survey import survey
from lartpc_ds.errors import UserError

UNSET = 2**63 - 1


def set_ids(path: Path, *ids: tuple[int, int, int]) -> None:
    with h5py.File(path, "r+") as file:
        file["Events/event_id"][:] = np.array(list(ids), EVENT_ID)


@pytest.mark.parametrize("number", [UNSET, -1, 0, 2**32 - 1, 1])
def test_ids_that_nobody_set_identify_by_file_and_index(write_file, number):
    path = write_file()
    set_ids(path, *[(number,) * 3] * 3)
    reader = Larcv3Reader(path)
    assert [reader.event_id(index).key for index in range(3)] == [f"{path}:{index}" for index in range(3)]
    assert reader.read(1).id == EventId(str(path), 1, -1, -1, -1)
    assert (
        len(reader.notes) == 1
        and f"no event identified, run, subrun and event are unset ({number}/{number}/{number})" in reader.notes[0]
    )
    reader.close()


def test_a_zero_or_a_part_that_is_unset_is_an_identity(write_file):
    path = write_file()
    set_ids(path, (0, 0, 0), (0, 0, 1), (-1, -1, 2))
    reader = Larcv3Reader(path)
    assert [reader.event_id(index).key for index in range(3)] == ["0/0/0", "0/0/1", "-1/-1/2"]
    assert reader.notes == ()
    pair = write_file("pair.h5", 2)
    set_ids(pair, (1, 0, 1), (1, 0, 1))
    assert {Larcv3Reader(pair).event_id(index).key for index in range(2)} == {"1/0/1"}, "two may be equal by mistake"
    set_ids(path, (0, 0, 0), (UNSET, UNSET, UNSET), (0, 0, 2))
    reader = Larcv3Reader(path)
    assert [reader.event_id(index).key for index in range(3)] == ["0/0/0", f"{path}:1", "0/0/2"]
    assert "1 of 3 events not identified" in reader.notes[0]


def test_files_of_larcv_itself_with_default_ids(real_events):
    files = open_files([str(real_events / "larcv_written" / "s2_default_ids.h5")])
    assert len({one.key for one in files.event_ids()}) == len(files) == 12
    assert [f"unset ({UNSET}/" in note for note in notes_of(files.readers)] == [True]


def test_a_note_of_many_files_is_said_once(write_file):
    paths = [write_file(name) for name in ("a.h5", "b.h5", "c.h5")]
    for path in paths[:2]:
        set_ids(path, *[(0, 0, 0)] * 3)
    (note,) = notes_of(open_files([str(path) for path in paths]).readers)
    assert note.startswith(f"{paths[0]} and 1 more file(s): no event identified,")


def ids_of(*numbers: int, file: str = "a.h5") -> list[EventId]:
    return [EventId(file, index, 1, 0, number) for index, number in enumerate(numbers)]


def pixels(*names: str) -> np.ndarray:
    return np.array([name.encode() for name in names], "S16")


def test_the_first_of_events_that_are_the_same_by_id_or_pixels():
    ids = ids_of(0, 1, 2, 1, 4, 4, 6)
    assert first_of_each(ids, pixels(*[""] * 7)).tolist() == [0, 1, 2, 1, 4, 4, 6]
    assert first_of_each(ids, pixels("a", "b", "a", "c", "d", "b", "")).tolist() == [0, 1, 0, 1, 1, 1, 6]


@pytest.mark.parametrize(
    ("digests", "message"),
    [
        (
            ("a", "b", "", "c"),
            r"event 1/0/1 \(run/subrun/event\) is in a\.h5 at index 1 and in b\.h5 at index 0, with other",
        ),
        (("a", "b", "", "b"), r"event 1/0/1 .* and in b\.h5 at index 0, with the same pixels; 1 of 4 events repeat"),
        (("", "", "", ""), r"event 1/0/1 .* and in b\.h5 at index 0; 1 of 4 .*data\.duplicates = \"drop\".*\"keep\""),
    ],
)
def test_duplicates_name_both_places_and_what_differs(digests, message):
    with pytest.raises(UserError, match=message):
        refuse_duplicates([*ids_of(0, 1, 2), *ids_of(1, file="b.h5")], pixels(*digests))


def test_copies_under_other_ids_are_named():
    with pytest.raises(
        UserError, match=r"the events in a\.h5 at index 0 and in a\.h5 at index 2 have different ids and"
    ):
        refuse_duplicates(ids_of(0, 1, 2), pixels("a", "b", "a"))
    refuse_duplicates(ids_of(0, 1, 2), pixels("a", "", ""))


def test_same_name_in_two_folders_is_no_duplicate():
    anonymous = [EventId(file, index, -1, -1, -1) for file in ("x/a.h5", "y/a.h5") for index in range(50)]
    refuse_duplicates(anonymous, pixels(*[""] * 100))


def indexed(paths: list[Path], duplicates: str) -> tuple[list[str], list[str]]:
    """The split of every event, and what is said."""
    files = open_files([str(path) for path in paths])
    look = survey(files.readers, np.ones(len(files), np.bool_))
    source = EventSource(files, Preprocessing((9, 10)), np.zeros(len(files), np.int64), ("muon",))
    index = build_index(source, {"train": 0.5, "validation": 0.5}, 3, duplicates, look)
    return index.split.tolist(), describe_duplicates(duplicates, source.ids(), np.arange(len(files)), look.digests)


def test_data_duplicates_decides(write_file):
    # b.h5 has events 8 to 15: eight ids and contents of a.h5 once more; in c.h5 events 20 to 22 are called 0 to 2
    paths = [write_file("a.h5", 16), write_file("b.h5", 8, first=8), write_file("c.h5", 3, first=20)]
    set_ids(paths[2], (1, 0, 0), (1, 0, 1), (1, 0, 2))
    with pytest.raises(UserError, match=r"a\.h5 at index 8 and in .*b\.h5 at index 0, with the same pixels; 11 of 27"):
        indexed(paths, "error")
    alone, _ = indexed(paths[:1], "error")
    split, said = indexed(paths, "keep")
    assert split == [*alone, *alone[8:], *alone[:3]] and len(set(alone)) == 2
    assert said == ["11 of 27 events repeat another one, by id or pixel by pixel: used too, in the split of the first"]
    split, said = indexed(paths, "drop")
    assert split == [*alone, *[""] * 11]
    assert said == ["11 of 27 events repeat another one, by id or pixel by pixel: left out"]


def test_copies_never_part(write_file):
    """Copies under other ids would be split apart by their ids: what trains would be tested."""
    original, copies = write_file("a.h5", 30), write_file("b.h5", 30)
    set_ids(copies, *[(2, 0, number) for number in range(30)])
    split, _ = indexed([original, copies], "keep")
    assert split[:30] == split[30:] and set(split) == {"train", "validation"}
    with pytest.raises(UserError, match=r"different ids and the same pixels.*30 of 60 events repeat"):
        indexed([original, copies], "error")


def test_larcv_repeats_an_event_that_was_given_no_product(real_events):
    with pytest.raises(UserError, match=r"index 1 and in .* at index 2 have different ids and the same pixels"):
        indexed([real_events / "larcv_written" / "s2_event_without_product.h5"], "error")
