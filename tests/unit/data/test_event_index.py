from dataclasses import replace

import numpy as np
import pytest

from lartpc_ds.data.event_index import build_index, read_index, write_index
from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing
from lartpc_ds.data.source import EventSource
from lartpc_ds.errors import UserError

NAMES = ("muon", "pion")
SHARES = {"train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture
def index(write_file):
    files = open_files([str(write_file("a.h5", 30)), str(write_file("b,c.h5", 10, first=30))])
    labels = np.arange(40) % 3 - 1
    return build_index(EventSource(files, Preprocessing((9, 10)), labels, NAMES), SHARES, seed=5)


def test_splits_part_the_labelled_events(index):
    parts = [index.positions(name) for name in ("train", "validation", "test")]
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == np.flatnonzero(index.label >= 0).tolist()
    assert index.positions("").tolist() == np.flatnonzero(index.label < 0).tolist()
    assert len(index) == 40


def test_table_survives_the_file(index, tmp_path):
    write_index(index, tmp_path / "events.csv")
    read = read_index(tmp_path / "events.csv", NAMES)
    assert read.ids == index.ids and read.class_names == NAMES
    np.testing.assert_array_equal(read.label, index.label)
    np.testing.assert_array_equal(read.split, index.split)
    lines = (tmp_path / "events.csv").read_text().splitlines()
    assert lines[0] == "file,index,run,subrun,event,label,split"
    assert lines[2] == f"{index.ids[1].file},1,1,0,1,muon,{index.split[1]}"


def test_table_of_other_classes(index, tmp_path):
    write_index(index, tmp_path / "events.csv")
    with pytest.raises(UserError, match=r"line 3: label 'muon' is not in \['kaon', 'pion'\]"):
        read_index(tmp_path / "events.csv", ("kaon", "pion"))


def test_other_table(tmp_path):
    (tmp_path / "events.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="columns"):
        read_index(tmp_path / "events.csv", NAMES)


def test_costs_survive_the_file(index, tmp_path):
    costs = np.round(np.random.default_rng(0).random(40), 6)
    write_index(replace(index, cost=costs), tmp_path / "events.csv")
    read = read_index(tmp_path / "events.csv", NAMES)
    np.testing.assert_array_equal(read.cost, costs)
    np.testing.assert_array_equal(read.split, index.split)
    assert (tmp_path / "events.csv").read_text().splitlines()[0] == "file,index,run,subrun,event,label,split,cost"
    write_index(index, tmp_path / "events.csv")
    assert read_index(tmp_path / "events.csv", NAMES).cost is None
