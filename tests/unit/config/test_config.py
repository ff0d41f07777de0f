import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lartpc_ds.config.run import (
    DataConfig,
    LayoutConfig,
    ModelConfig,
    RunConfig,
    SimulateConfig,
    SplitConfig,
    TrainConfig,
)
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError

SHORTEST = {"train": {"max_steps": 1}}


def parse(**sections: Any) -> RunConfig:
    return RunConfig.parse({**SHORTEST, **sections}, "my.toml")


def problems(**sections: Any) -> list[str]:
    """Lines of the message; the first names the source."""
    with pytest.raises(UserError) as caught:
        parse(**sections)
    first, *lines = str(caught.value).splitlines()
    assert first == "my.toml:"
    return [line.strip() for line in lines]


def test_every_problem_is_reported_at_once() -> None:
    lines = problems(
        data={"batch": 0, "fils": [], "split": {"train": 1.5}, "simulate": {"events": "many"}},
        model={"norm": "instance"},
        train={"max_steps": 1, "lr_scaling": "cubic"},
        dta={},
    )
    by_key = dict(line.split(": ", 1) for line in lines)
    assert set(by_key) == {
        *("data.batch", "data.fils", "data.split.train", "data.simulate.events"),
        *("model.norm", "train.lr_scaling", "dta"),
    }
    assert "greater than or equal to 1" in by_key["data.batch"] and "given: 0" in by_key["data.batch"]
    assert "less than or equal to 1" in by_key["data.split.train"] and "given: 1.5" in by_key["data.split.train"]
    assert all(word in by_key["train.lr_scaling"] for word in ("'linear'", "'sqrt'", "'none'", "'cubic'"))
    assert all(word in by_key["model.norm"] for word in ("'batch'", "'group'", "'layer'", "'instance'"))
    assert "given: 'many'" in by_key["data.simulate.events"]


@pytest.mark.parametrize(
    ("path", "section"),
    [
        ("", RunConfig),
        ("data", DataConfig),
        ("data.split", SplitConfig),
        ("data.simulate", SimulateConfig),
        ("model", ModelConfig),
        ("layout", LayoutConfig),
        ("train", TrainConfig),
    ],
)
def test_an_unknown_key_is_refused_with_the_keys_there_are(path: str, section: type[RunConfig]) -> None:
    tree: dict[str, Any] = {"train": {"max_steps": 1}}
    level = tree
    for part in filter(None, path.split(".")):
        level = level.setdefault(part, {})
    level["typo"] = 1
    (line,) = problems(**tree)
    key, _, message = line.partition(": ")
    assert key == f"{path}.typo".removeprefix(".")
    assert message == f"unknown key; allowed here: {', '.join(section.model_fields)}"


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"train": {"max_steps": "3"}}, "train.max_steps"),
        ({"train": {"max_steps": 3.0}}, "train.max_steps"),
        ({"train": {"max_steps": True}}, "train.max_steps"),
        ({"train": {"epochs": "1"}}, "train.epochs"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"data": {"files": "a.h5"}}, "data.files"),
        ({"data": {"threshold": float("inf")}}, "data.threshold"),
        ({"data": {"isolated": -1}}, "data.isolated"),
        ({"data": {"isolated": 26}}, "data.isolated"),
        ({"data": {"isolated": 3.0}}, "data.isolated"),
        ({"data": {"isolated": True}}, "data.isolated"),
        ({"data": {"saturate": float("nan")}}, "data.saturate"),
        ({"data": {"saturate": 0.0}}, "data.saturate"),
        ({"data": {"seed": -1}}, "data.seed"),
        ({"data": {"simulate": {"momentum": [0.2]}}}, "data.simulate.momentum"),
        ({"data": {"simulate": {"vertex": [[0.0, 1.0], [0.0, 1.0], [0.0, 1.1]]}}}, "data.simulate.vertex"),
        ({"data": {"simulate": {"vertex": [[0.0, 1.0], [0.6, 0.4], [0.0, 1.0]]}}}, "data.simulate"),
        ({"data": {"simulate": {"angle": 0.0}}}, "data.simulate.angle"),
        ({"data": {"simulate": {"angle": 181.0}}}, "data.simulate.angle"),
        ({"data": 3}, "data"),
        ({"layout": {"rows": 0}}, "layout.rows"),
        ({"layout": {"data": 0}}, "layout.data"),
        ({"model": {"name": None}}, "model.name"),
    ],
)
def test_no_value_is_converted_or_out_of_range(sections: dict[str, Any], key: str) -> None:
    assert any(line.startswith(f"{key}") for line in problems(**sections))


@pytest.mark.parametrize("classes", [["electron", 1], {"track": ["muon"]}, {"track": 13}, "electron"])
def test_classes_are_names_or_a_table_of_codes(classes: Any) -> None:
    assert all(line.startswith("data.classes") for line in problems(data={"classes": classes}))


@pytest.mark.parametrize("downsample", [0, 1.5, [2], [2, 2, 2], [2, 0], "2"])
def test_downsample_is_one_factor_or_two(downsample: Any) -> None:
    assert all(line.startswith("data.downsample") for line in problems(data={"downsample": downsample}))


def test_downsample_factors_are_wires_and_ticks() -> None:
    assert parse(data={"downsample": 3}).data.downsample_factors == (3, 3)
    assert parse(data={"downsample": [2, 5]}).data.downsample_factors == (2, 5)


def test_shares_sum_to_one_and_some_events_train() -> None:
    assert problems(data={"split": {"train": 0.5, "validation": 0.2}}) == [
        "data.split: train + validation + test must be 1, they are 0.7"
    ]
    assert problems(data={"split": {"train": 0.0, "validation": 1.0}}) == ["data.split: train must be above 0"]
    parse(data={"split": {"train": 0.7, "validation": 0.2, "test": 0.1}})  # their float sum is not exactly 1


@pytest.mark.parametrize(
    "given",
    [
        {"files": ["a.h5"]},
        {"product": "wire", "truth": "mctruth"},
        {"labels": "neutrino"},
        {"classes": ["muon"]},
        {"detector": "sbnd"},
        {"downsample": 2},
        {"threshold": 1.0},
        {"isolated": 3},
        {"saturate": 9.0},
        {"simulate": {"events": 3}},
        {"format": "larcv3"},
    ],
)
def test_images_of_ones_own_exclude_what_makes_images_of_events(given: dict[str, Any]) -> None:
    (line,) = problems(data={"target": "my_pkg.images:make", **given})
    assert line.startswith("data: target = 'my_pkg.images:make' brings images of your own")
    assert f"so {', '.join(given)} would have no effect; remove them" in line
    parse(data={"target": "my_pkg.images:make", "flip": True, "shift": [3, 4], "batch": 2, "workers": 1})


def test_a_loss_of_ones_own_excludes_class_weights() -> None:
    (line,) = problems(train={"max_steps": 1, "loss_target": "my_pkg.losses:mine", "class_weights": "balanced"})
    assert line.startswith("train: class_weights = 'balanced' would have no effect on loss_target")


@pytest.mark.parametrize("shift", [3, [3], [-1, 0], [1.5, 0], [1, 2, 3]])
def test_a_shift_is_two_pixels(shift: Any) -> None:
    assert all(line.startswith("data.shift") for line in problems(data={"shift": shift}))


def test_a_run_has_a_length() -> None:
    assert problems(train={}) == ["train: give max_steps, epochs or both"]
    with pytest.raises(UserError, match="train: Field required"):
        RunConfig.parse({}, "my.toml")


def test_python_callers_get_no_conversion_either() -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        TrainConfig.model_validate({"max_steps": "3"})


def test_a_configuration_is_frozen() -> None:
    config = parse()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.max_steps = 2
    with pytest.raises(ValidationError, match="frozen"):
        config.train = TrainConfig(max_steps=2)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "data": {
                "files": ['a "quoted".h5', "b*.h5"],
                "classes": {"track": [13, -13], "shower": [11, 22]},
                "split": {"train": 0.7, "validation": 0.2, "test": 0.1},
                "downsample": [2, 4],
                "threshold": 1e-3,
                "isolated": 25,
                "saturate": 200.0,
                "simulate": {"events": 7, "momentum": [0.1, 0.3], "seed": 2},
            },
            "model": {"target": "pkg.nets:make", "width": 8, "norm": "layer", "planes": "towers"},
            "layout": {"data": 3},
            "train": {"epochs": 2.5, "class_weights": "balanced", "ds_config": "zero3_fp32"},
        },
        {
            "data": {"target": "pkg.images:make", "flip": True, "shift": [3, 0]},
            "train": {"max_steps": 1, "loss_target": "pkg.losses:mine"},
        },
    ],
)
def test_a_saved_configuration_reads_back_the_same(tmp_path: Path, sections: dict[str, Any]) -> None:
    config = parse(**sections)
    folder = RunFolder(tmp_path)
    folder.write(config, {}, {})
    assert RunConfig.parse(tomllib.loads(folder.config_file.read_text()), "saved") == config


def test_configuration_and_layout_import_nothing_heavy() -> None:
    code = (
        "import sys, lartpc_ds.config.run, lartpc_ds.layout, lartpc_ds.errors, lartpc_ds.data.detectors\n"
        "heavy = sorted({'torch', 'deepspeed', 'h5py'} & sys.modules.keys())\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recomputation_by_event_needs_events_that_differ_and_ranks_that_may():
    memory = {"recompute": "auto", "lit_block": 32}
    assert RunConfig.parse({"memory": memory, "train": {"epochs": 1}}, "x").memory.recompute == "auto"
    for tree, words in (
        ({"memory": memory | {"lit_block": 0}}, r"memory\.recompute = 'auto'.*set memory\.lit_block, or"),
        ({"memory": memory, "model": {"norm_scope": "all"}}, r"model\.norm_scope = 'all': each rank decides"),
    ):
        with pytest.raises(UserError, match=words):
            RunConfig.parse(tree | {"train": {"epochs": 1}}, "x")
