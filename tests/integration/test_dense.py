"""A user's U-Net segments real events through the command line: one rank, and two tiles of one image, are one run."""

import csv
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lartpc_ds.config.run_folder import RunFolder
from tests.integration.cli import Finished, run_cli, started
from tests.integration.users_images import CROP, FOLDER

ROOT = Path(__file__).parents[2]
RUN = """
[data]
target = "tests.integration.users_images:CosmicPixels"
split = { train = 0.5, validation = 0.5 }
batch = 1
seed = 2
flip = true
shift = [20, 30]

[model]
target = "tests.unet:unet"

[layout]
gather_at = "never"

[train]
ds_config = "zero2_fp32"
loss_target = "tests.integration.users_images:rare_classes_count_more"
max_steps = 4
eval_every = 2
"""
SGD = ['ds.optimizer={type="SGD",params={lr=0.05,momentum=0.9}}', 'ds.scheduler={type="constant",params={}}']
LAYOUTS = {"one": [], "rows": ["layout.rows=2"], "cols": ["layout.cols=2"]}


def settings(layout: str) -> list[str]:
    return [part for setting in [*SGD, *LAYOUTS[layout]] for part in ("--set", setting)]


def environment(real_events: Path) -> dict[str, str]:
    return {FOLDER: str(real_events.resolve()), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, real_events: Path) -> tuple[Path, dict[str, Finished]]:
    """A folder with one finished run a layout, and what each said."""
    work = tmp_path_factory.mktemp("dense")
    (work / "run.toml").write_text(RUN)
    finished = {}
    with ExitStack() as jobs:
        running = {
            name: jobs.enter_context(
                started(
                    work,
                    *("train", "run.toml", *settings(name), "--devices", "1" if name == "one" else "2"),
                    *("--run-dir", name),
                    run_dir=name,
                    environment=environment(real_events),
                )
            )
            for name in LAYOUTS
        }
        for name, job in running.items():
            finished[name] = job.finish()
            assert finished[name].code == 0, finished[name].out + finished[name].err
    return work, finished


def lines(work: Path, name: str, key: str) -> list[dict[str, Any]]:
    return [line for line in RunFolder(work / name).metrics() if key in line]


def test_tiles_train_as_one_rank(runs: tuple[Path, dict[str, Finished]]) -> None:
    work, _ = runs
    losses, accuracies = (
        {name: [line[key] for line in lines(work, name, "loss")] for name in LAYOUTS} for key in ("loss", "accuracy")
    )
    assert len(losses["one"]) == 4 and len(set(losses["one"])) == 4
    for name in ("rows", "cols"):
        assert losses[name] == pytest.approx(losses["one"], abs=1e-5), name
        assert accuracies[name] == pytest.approx(accuracies["one"], abs=1e-3), name


def same_figures(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert (one["counted"], one["events"]) == (other["counted"], other["events"])
    pixels = [sum(map(sum, figures["confusion"])) for figures in (one, other)]
    assert pixels[0] == pixels[1] > 1000
    differences = np.abs(np.array(one["confusion"]) - np.array(other["confusion"]))
    # a pixel whose two best scores differ by rounding only may be called either
    assert differences.sum() <= 1e-3 * pixels[0]


def test_evaluations_in_training_are_those_of_one_rank(runs: tuple[Path, dict[str, Finished]]) -> None:
    work, _ = runs
    figures = {name: [line["evaluation"] for line in lines(work, name, "evaluation")] for name in LAYOUTS}
    assert len(figures["one"]) == 2 and figures["one"][0]["counted"] == "pixels"
    for name in ("rows", "cols"):
        for one, other in zip(figures["one"], figures[name], strict=True):
            same_figures(one, other)


def test_every_image_has_a_part_and_no_label(runs: tuple[Path, dict[str, Finished]]) -> None:
    work, finished = runs
    with (work / "one" / "events.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["index"] for row in rows] == [str(number) for number in range(6)]
    assert {row["label"] for row in rows} == {""} and {row["split"] for row in rows} == {"train", "validation"}
    assert f"1 channels x {CROP[0]} rows x {CROP[1]} columns" in finished["one"].out
    assert "6 of tests.integration.users_images:CosmicPixels" in finished["one"].out


@pytest.mark.parametrize(("name", "devices"), [("one", 1), ("one", 2), ("rows", 2)])
def test_evaluate_does_not_depend_on_ranks_and_tiles(
    runs: tuple[Path, dict[str, Finished]], real_events: Path, name: str, devices: int
) -> None:
    """Three held-out images on two data ranks: the surplus is not counted."""
    work, _ = runs
    before = set((work / name).iterdir())
    finished = run_cli(work, "evaluate", name, "--devices", str(devices), environment=environment(real_events))
    assert finished.code == 0 and finished.err == "", finished.out + finished.err
    assert "pixels of" in finished.out and "scores:" not in finished.out
    (figures,) = set((work / name).iterdir()) - before
    assert figures.suffix == ".json" and not list((work / name).glob("predictions*"))
    same_figures(lines(work, "one", "evaluation")[-1]["evaluation"], json.loads(figures.read_text()))


def test_files_make_no_sense_for_images_of_ones_own(runs: tuple[Path, dict[str, Finished]], real_events: Path) -> None:
    finished = run_cli(runs[0], "evaluate", "one", "--files", "a.h5", environment=environment(real_events))
    assert finished.code == 2 and "--files" in finished.err and "data.target" in finished.err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('data.target="tests.own_images:Nothing"', ["data.target", "tests.own_images", "no such name"]),
        ('data.target="tests.own_images:Labelled"', ["tests.unet:unet", "must give scores of shape (1, 3)"]),
        ('data.files=["a.h5"]', ["data: target", "files would have no effect"]),
    ],
)
def test_what_cannot_work_ends_before_anything_is_written(tmp_path: Path, setting: str, words: list[str]) -> None:
    (tmp_path / "run.toml").write_text(
        RUN.replace("tests.integration.users_images:CosmicPixels", "tests.own_images:Dense")
    )
    loss = 'train.loss_target="tests.own_images:focal"'
    arguments = ["train", "run.toml", "--set", loss, "--set", setting, "--set", "data.shift=[0,0]", "--run-dir", "run"]
    finished = run_cli(tmp_path, *arguments, environment={"PYTHONPATH": str(ROOT)})
    assert finished.code == 2 and finished.out == "" and "Traceback" not in finished.err
    assert not [word for word in words if word not in finished.err], finished.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_run_that_is_longer_goes_on(runs: tuple[Path, dict[str, Finished]], real_events: Path) -> None:
    """Straight to step 6, and to 4 then on: augmentation is keyed by the step, so both are the same run."""
    work, _ = runs
    longer = ["--set", "train.max_steps=6", "--run-dir"]
    for folder, resume in (("straight", []), ("rows", ["--resume"])):
        arguments = ["train", "run.toml", *settings("rows"), "--devices", "2", *longer, folder, *resume]
        finished = run_cli(work, *arguments, environment=environment(real_events))
        assert finished.code == 0, finished.out + finished.err
    straight, resumed = ([line["loss"] for line in lines(work, name, "loss")] for name in ("straight", "rows"))
    assert len(straight) == 6 and straight == resumed
