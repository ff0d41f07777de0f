import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lartpc_ds.advise.calibrate import calibrate
from lartpc_ds.config import ds_config, recipes
from lartpc_ds.config.run import TrainConfig
from lartpc_ds.data.detectors import detector
from lartpc_ds.data.event import EventId
from lartpc_ds.data.labels import class_names
from lartpc_ds.errors import UserError
from lartpc_ds.models.build import build_model
from lartpc_ds.simulation.generate import Aim, simulate_event

MINE = """
[data]
files = ["a.h5"]

[train]
ds_config = "zero0_fp32"
max_steps = 4
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


def test_the_recipes_that_readers_are_told_of_are_shipped() -> None:
    assert recipes.names() == [
        "argoneut",
        "microboone-full",
        "microboone-lit",
        "microboone-raw",
        "microboone-raw-resnet50",
        "quickstart",
        "sbnd",
    ]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_loads_and_means_something(name: str) -> None:
    config, ds = recipes.load(name)
    assert ds["optimizer"]["params"]["lr"] > 0
    names = class_names(config.data.labels, config.data.classes)
    build_model(config.model.name, planes=3, num_classes=len(names), width=2, norm=config.model.norm)
    if config.data.detector != "auto":
        assert detector(config.data.detector).image_shape
    else:
        assert "data.files" in recipes.path_of(name).read_text(), "it cannot simulate, so it must say what it needs"


@pytest.mark.parametrize("name", recipes.names())
def test_a_network_of_convolutions_is_trained_without_zero(name: str) -> None:
    """Its few weights are not worth the time and the copies; nor are they where a recipe leaves the choice to us."""
    assert recipes.load(name)[1]["zero_optimization"]["stage"] == 0
    assert TrainConfig(max_steps=1).ds_config.startswith("zero0_")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("species", "events"), [("electron", 20), ("gamma", 250), ("muon", 20), ("pion", 20), ("kaon", 20)]
)
def test_nearly_every_event_of_the_quickstart_has_charge(species: str, events: int) -> None:
    data = recipes.load("quickstart")[0].data
    aim = Aim(data.simulate.vertex, data.simulate.angle)
    charged = 0
    for index in range(events):
        rng = np.random.default_rng([5, index])
        momentum_gev = float(rng.uniform(*data.simulate.momentum))
        identity = EventId("made.h5", index, 1, 5, index)
        event = simulate_event(detector(data.detector), species, momentum_gev, rng, identity, aim)
        charged += event.particles["energy_deposit"].sum() > 1e-3
    assert species in data.classes
    assert charged / events > 0.95


def test_the_demonstrations_show_the_same_task() -> None:
    first, second = (recipes.load(name)[0].data for name in ("quickstart", "argoneut"))
    for key in ("momentum", "vertex", "angle"):
        assert getattr(first.simulate, key) == getattr(second.simulate, key)
    assert (first.detector, first.classes, first.threshold) == (second.detector, second.classes, second.threshold)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_begins_with_what_it_is_for(name: str) -> None:
    assert recipes.path_of(name).read_text().startswith("# ")


def test_a_users_file_is_found_by_its_path(mine: str) -> None:
    config, ds = recipes.load(mine)
    assert config.data.files == ("a.h5",)
    assert ds["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize("run", ["", ".", "missing", "dir/missing.toml"])
def test_an_unknown_run_lists_the_recipes(run: str) -> None:
    with pytest.raises(UserError, match=r"RUN = .*no such file.*quickstart, sbnd"):
        recipes.load(run)


@pytest.mark.parametrize("content", [b"[data\n", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.toml: not TOML"):
        recipes.load(str(path))


def test_a_bad_key_is_reported_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(MINE + "step = 1\n")
    with pytest.raises(UserError, match=r"bad\.toml:\n  train\.step: unknown key"):
        recipes.load(str(path))


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("train.max_steps=7", "train", "max_steps", 7),
        ("train.max_steps = 7", "train", "max_steps", 7),
        ("train.epochs=0.5", "train", "epochs", 0.5),
        ('model.name="resnet34"', "model", "name", "resnet34"),
        ("model.target='my_pkg.nets:make=1'", "model", "target", "my_pkg.nets:make=1"),
        ('data.files=["b.h5", "c*.h5"]', "data", "files", ("b.h5", "c*.h5")),
        ("data.classes={track = [13, -13], shower = [11]}", "data", "classes", {"track": (13, -13), "shower": (11,)}),
        ("data.downsample=[2, 4]", "data", "downsample", (2, 4)),
    ],
)
def test_set_reaches_a_key_of_the_run(mine: str, override: str, section: str, key: str, expected: Any) -> None:
    config, _ = recipes.load(mine, [override])
    assert getattr(getattr(config, section), key) == expected
    assert Path(mine).read_text() == MINE


def test_set_reaches_nested_keys_and_whole_tables(mine: str) -> None:
    config, _ = recipes.load(mine, ["data.simulate.momentum=[0.3, 0.4]", "data.split={train=0.6, validation=0.4}"])
    assert config.data.simulate.momentum == (0.3, 0.4)
    assert (config.data.split.train, config.data.split.validation, config.data.split.test) == (0.6, 0.4, 0.0)


def test_the_last_of_several_sets_holds(mine: str) -> None:
    assert recipes.load(mine, ["train.seed=1", "train.seed=2"])[0].train.seed == 2


def test_set_ds_reaches_into_the_json_that_the_run_ends_up_with(mine: str) -> None:
    overrides = ["ds.optimizer.params.lr=3e-4", 'train.ds_config="zero3_bf16"', "ds.tensorboard.enabled=true"]
    _, ds = recipes.load(mine, overrides)
    assert ds["zero_optimization"]["stage"] == 3
    assert ds["optimizer"]["params"]["lr"] == 3e-4
    assert ds["tensorboard"]["enabled"] is True
    assert recipes.load(mine)[1]["optimizer"]["params"]["lr"] == 1e-3, "a load leaves nothing behind"


@pytest.mark.parametrize("text", ["train.max_steps", "=3", "ds=3", "ds.=3", ".=3", "train..seed=1", ""])
def test_a_set_that_is_not_key_value_is_refused(mine: str, text: str) -> None:
    with pytest.raises(UserError, match=r"--set .*must be KEY=VALUE, such as train\.max_steps=10"):
        recipes.load(mine, [text])


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("model.norm=layer", "model", "norm", "layer"),
        ("train.ds_config = zero2_fp32 ", "train", "ds_config", "zero2_fp32"),
        ("model.target=my_pkg.nets:make=1", "model", "target", "my_pkg.nets:make=1"),
        ("model.weights=/a/b c/model.pt", "model", "weights", "/a/b c/model.pt"),
        ("model.name='two words'", "model", "name", "two words"),
        ("model.name=7x7", "model", "name", "7x7"),
        ("launch.hdf5_file_locking=off", "launch", "hdf5_file_locking", "off"),
        ("model.name=it's", "model", "name", "it's"),
        ("memory.recompute=none", "memory", "recompute", "none"),
    ],
)
def test_a_value_that_is_no_toml_is_a_string(mine: str, override: str, section: str, key: str, expected: str) -> None:
    config, _ = recipes.load(mine, [override])
    assert getattr(getattr(config, section), key) == expected


def test_a_string_reaches_the_json_without_quotes_too(mine: str) -> None:
    assert recipes.load(mine, ["ds.optimizer.type=SGD", "ds.optimizer.params={lr = 0.1}"])[1]["optimizer"] == {
        "type": "SGD",
        "params": {"lr": 0.1},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.files=[a.h5, b.h5]", r"begins like a list but is not TOML: Invalid value; for the text: --set"),
        ("data.files=['a.h5'", r"begins like a list but is not TOML"),
        ("data.classes={track = [13], }x", r"begins like a table but is not TOML"),
        ('model.name="resnet18', r"begins like a quoted string but is not TOML"),
        ("data.shift=(1, 2)", r"begins like a list, in \[ \], but is not TOML"),
        ("data.flip=True", r"TOML writes true: --set data\.flip=true;"),
        ("data.flip=FALSE", r"TOML writes false: --set data\.flip=false;"),
        ("data.threshold=.5", r"TOML writes 0\.5: --set data\.threshold=0\.5;"),
        ("train.seed=007", r"TOML writes 7: --set train\.seed=7;"),
        ("ds.optimizer.params.lr=1.", r"TOML writes 1\.0: --set ds\.optimizer\.params\.lr=1\.0;"),
        ("data.saturate=None", r"TOML has no None; leave the key out for its default"),
        ("model.name=", r"VALUE is empty; for the text: --set 'model\.name=\"\"'"),
    ],
)
def test_what_was_not_meant_as_a_string_is_refused_with_the_right_spelling(
    mine: str, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"^--set .*{message}") as caught:
        recipes.load(mine, [override])
    hint = str(caught.value).rpartition("--set ")[2].strip("'")
    assert recipes.as_written(mine, [hint]), "the spelling that the message gives for the text is read"


def test_a_string_for_a_key_of_another_kind_is_named_with_what_is_allowed(mine: str) -> None:
    with pytest.raises(UserError, match=r"train\.max_steps: .*valid integer.*'ten'"):
        recipes.load(mine, ["train.max_steps=ten"])
    with pytest.raises(UserError, match=r"optimizer\.params\.eps: must be like 1e-08 \(given: 'small'\)"):
        recipes.load(mine, ["ds.optimizer.params.eps=small"])
    with pytest.raises(UserError, match=r"scheduler\.params\.warmup_min_ratio: must be like 0\.0 \(given: 'small'\)"):
        recipes.load(mine, ["ds.scheduler.params.warmup_min_ratio=small"])


def test_every_wrong_set_is_reported_at_once(mine: str) -> None:
    wrong = [
        "train.max_steps",
        "data.flip=True",
        "train.max_steps.a=3",
        "ds.optimizer.params.lr.a=3",
        "train.sed=1",
        "data.sed=1",
    ]
    with pytest.raises(UserError) as caught:
        recipes.load(mine, ["train.seed=3", *wrong])
    told = str(caught.value)
    for part in [
        "--set 'train.max_steps': must be KEY=VALUE",
        "--set 'data.flip=True': TOML writes true",
        "--set train.max_steps.a: max_steps is a value, not a section",
        "--set ds.optimizer.params.lr.a: lr is a value, not a section",
        "train.sed: unknown key",
        "data.sed: unknown key",
    ]:
        assert told.count(part) == 1, f"{part}\n{told}"
    with pytest.raises(UserError, match=r"(?s)data\.sed: unknown key.*gradient_cliping: unknown key"):
        recipes.load(mine, ["data.sed=1", "ds.gradient_cliping=1"])


def test_a_set_holds_one_value(mine: str) -> None:
    with pytest.raises(UserError, match="--set"):
        recipes.load(mine, ["train.seed=1\nmax_steps=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps='7'", r"train\.max_steps: .*valid integer.*'7'"),
        ("train.sed=1", r"train\.sed: unknown key; allowed here: .*seed"),
        ("train.max_steps.a=3", r"train\.max_steps: a value|train\.max_steps.*(is a value|valid integer)"),
        ("ds.optimizer.params.lr.a=3", "lr is a value, not a section"),
        ("ds.gradient_cliping=1", "gradient_cliping: unknown key"),
        ("ds.train_batch_size=8", r"train_batch_size: belongs to data\.batch"),
        ('train.ds_config="zero7"', r"train\.ds_config = 'zero7'"),
    ],
)
def test_a_set_is_checked_like_the_file(mine: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipes.load(mine, [override])


def test_recipes_parse_as_plain_toml_with_a_known_json() -> None:
    for name in recipes.names():
        tree = tomllib.loads(recipes.path_of(name).read_text())
        assert set(tree) <= {"data", "model", "layout", "memory", "train"}


def test_calibration_measures_the_same_whatever_the_demonstration_trains() -> None:
    config, ds = recipes.load("quickstart", calibrate._TINY_RUN)
    assert (ds["zero_optimization"]["stage"], ds_config.precision(ds)) == (2, "bf16")
    assert (config.data.downsample, config.model.stem_stride, config.model.width) == (8, (2, 8), 4)
    assert (config.data.batch, config.train.accumulate) == (1, 1)
