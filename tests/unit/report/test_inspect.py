import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing, densify
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.errors import UserError
from lartpc_ds.report.inspect import config_of_images, inspect_files, print_inspection

REAL = "sbnd_2events_larcv3.h5"


@pytest.fixture
def folder(real_events, tmp_path) -> Path:
    """good.h5 is the real file, bad.h5 a copy whose event 0 has an impossible voxel, cut.h5 is truncated."""
    data = (real_events / REAL).read_bytes()
    for name in ("good.h5", "bad.h5"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "cut.h5").write_bytes(data[:5000])
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        voxels = file["Data/sparse2d_sbndwire_group/voxels"]
        first = voxels[:10]
        first["id"][3] = 2048 * 1280
        voxels[:10] = first
    return tmp_path


def shown(report) -> str:
    console = Console(width=300, file=io.StringIO())
    print_inspection(console, report)
    return console.file.getvalue()


def test_real_file(real_events):
    report = inspect_files([str(real_events / REAL)])
    assert json.loads(json.dumps(report)) == report
    path = str(real_events / REAL)
    line = {"file": path, "format": "larcv3", "events": 2, "planes": 3, "product": "sbndwire", "truth": "sbndneutrino"}
    assert report["files"] == [{**line, "problems": []}]
    assert report["problems"] == []
    assert [event["label"] for event in report["events"]] == ["numu", "nue"]
    first = report["events"][0]
    assert list(first) == ["file", "index", "run", "subrun", "event", "label", "planes"]
    assert [first[key] for key in ("file", "index", "run", "subrun", "event")] == [path, 0, -1, -1, -1]
    assert first["planes"][2] == {
        "plane": 2,
        "shape": [2048, 1280],
        "nonzero": 10084,
        "sum": pytest.approx(463207.088, abs=1e-3),
        "min": pytest.approx(5.0, abs=0.5),
        "max": pytest.approx(448.7843, abs=1e-4),
    }


def test_tables_show_what_a_reader_asks_for(real_events):
    text = shown(inspect_files([str(real_events / REAL)]))
    for piece in (REAL, "larcv3", "sbndwire", "2048 x 1280", "0.922%", "23223 to 25094", "numu", "50.0%"):
        assert piece in text
    assert "no problems in 2 events" in text


def test_broken_files_do_not_hide_the_others(folder):
    report = inspect_files([f"{folder}/*.h5", f"{folder}/*.root"])
    lines = {Path(line["file"]).name: line for line in report["files"]}
    assert {name: (line["events"], len(line["problems"])) for name, line in lines.items()} == {
        "bad.h5": (2, 1),
        "cut.h5": (None, 1),
        "good.h5": (2, 0),
    }
    assert [(Path(event["file"]).name, event["index"]) for event in report["events"]] == [
        ("bad.h5", 1),
        ("good.h5", 0),
        ("good.h5", 1),
    ]
    assert report["events"][0]["label"] == "nue"
    text = shown(report)
    for piece in ("*.root' matches no file", "event 0, plane 0: voxel id 2621440 lies outside", "truncated"):
        assert sum(piece in problem for problem in report["problems"]) == 1
        assert piece in text
    assert "no problems" not in text


def test_files_of_two_detectors_and_without_truth(folder):
    files = open_files([f"{folder}/good.h5"])
    event = files.read(0)
    files.close()
    with Larcv3Writer(folder / "two.h5") as writer:
        writer.write(type(event)(event.id, event.planes[:2], event.particles[:0]))
    with h5py.File(folder / "two.h5", "r+") as file:
        del file["Data/particle_mctruth_group"]
    report = inspect_files([f"{folder}/good.h5", f"{folder}/two.h5"])
    assert len(report["problems"]) == 1
    assert "number of planes" in report["problems"][0] and "two.h5" in report["problems"][0]
    assert [event["label"] for event in report["events"]] == ["numu", "nue", None]
    assert "no truth in the file" in shown(report)


def test_product_is_passed_on(real_events):
    report = inspect_files([str(real_events / REAL)], product="sbnd_cosmicseg")
    assert report["files"][0]["product"] == "sbnd_cosmicseg" and report["problems"] == []
    assert report["events"][0]["planes"][0]["nonzero"] < 23223
    wrong = inspect_files([str(real_events / REAL)], product="none")
    assert wrong["events"] == [] and "--product" in wrong["problems"][0]


def test_repeated_events_and_absurd_values_are_named(folder):
    with h5py.File(folder / "bad.h5", "r+") as file:
        voxels = file["Data/sparse2d_sbndwire_group/voxels"]
        last = voxels[-10:]
        last["value"][2] = -1e38
        voxels[-10:] = last
    report = inspect_files([f"{folder}/good.h5", f"{folder}/bad.h5"])
    assert len(report["problems"]) == 2 and "event 0, plane 0: voxel id" in report["problems"][0]
    assert "bad.h5: event 1, plane 2 holds the value -1e+38; expected at most 1e+09" in report["problems"][1]
    assert ["no event identified" in note for note in report["notes"]] == [True]
    (folder / "copy.h5").write_bytes((folder / "good.h5").read_bytes())
    _, copies = inspect_files([f"{folder}/good.h5", f"{folder}/copy.h5"])["notes"]
    assert "2 of 4 events repeat another one" in copies and "data.duplicates" in copies
    assert copies in shown(inspect_files([f"{folder}/good.h5", f"{folder}/copy.h5"]))


def test_a_note_says_what_isolated_drops(folder):
    images = config_of_images(["data.isolated=3", "data.threshold=10.0"])
    *others, note = inspect_files([f"{folder}/good.h5"], images=images)["notes"]
    assert note == "data.isolated = 3 drops 0.759 % of the lit pixels with 0.259 % of the charge"
    assert others == inspect_files([f"{folder}/good.h5"])["notes"]
    with pytest.raises(UserError, match=r"data\.detector = 'argoneut': its image is 240 wires x 2048 ticks"):
        inspect_files([f"{folder}/good.h5"], images=config_of_images(["data.isolated=3", "data.detector=argoneut"]))


def test_notes_say_what_is_lit(folder):
    plain = inspect_files([f"{folder}/good.h5"])["notes"]
    images = config_of_images(["memory.lit_block=auto", "data.threshold=10.0"])
    *others, shares, brightest = inspect_files([f"{folder}/good.h5"], images=images)["notes"]
    assert others == plain
    files = open_files([f"{folder}/good.h5"])
    lit = np.stack(
        [(densify(files.read(index), Preprocessing((2048, 1280), threshold=10)) != 0).any(0) for index in (0, 1)]
    )
    of_each = lit.reshape(2, 64, 32, 40, 32).any(axis=(2, 4)).mean(axis=(1, 2))
    assert "patches of 32 x 32 pixels, charge lights in the median event" in shares
    assert f": image {100 * np.median(of_each):.0f} % (" in shares and shares.endswith(
        f", {100 * of_each.max():.0f} %)"
    )
    assert f"good.h5: event {of_each.argmax()}, which lights {100 * of_each.max():.0f} % of the image's" in brightest
    both = inspect_files([f"{folder}/good.h5"], images=config_of_images(["memory.lit_block=32", "data.isolated=3"]))
    assert "data.isolated = 3 drops" in both["notes"][-3]
    bad = inspect_files([f"{folder}/bad.h5"], images=images)
    assert "bad.h5: event 1, which lights" in bad["notes"][-1]


def test_inspect_takes_keys_of_images_only():
    assert config_of_images([]) is None
    with pytest.raises(UserError) as caught:
        config_of_images(["data.isolated=3", "train.epochs=2.0", "ds.optimizer=3", "data.files"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "--set 'data.files'",
        "--set train.epochs",
        "--set ds.optimizer",
    ]
    for keys in (["data.threshold=10.0"], ["data.isolated=0"]):
        with pytest.raises(
            UserError, match=r"data\.isolated = 0 is off.*set data\.isolated to 1 to 25.*or leave --set out"
        ):
            config_of_images(keys)
    with pytest.raises(UserError, match=r"data\.isolated: Input should be less than or equal to 25 \(given: 26\)"):
        config_of_images(["data.isolated=26"])
