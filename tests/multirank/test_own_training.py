"""Runs on a user's images and losses: tiles, data ranks and one rank that accumulates are one run."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.layout import Layout
from lartpc_ds.training import session
from lartpc_ds.training.evaluation import EvaluationRequest
from tests.ranks import run_ranks

RUN = """
[data]
target = "tests.own_images:{images}"
split = {{ train = 0.6, validation = 0.4 }}
batch = 2
seed = 9

[model]
target = "tests.own_images:{model}"
norm_scope = "all"

[layout]
gather_at = "never"

[train]
ds_config = "zero2_fp32"
max_steps = 3
"""
SETTINGS = ['ds.optimizer={type="SGD",params={lr=0.05,momentum=0.9}}']
LAYOUTS = [Layout(), Layout(rows=2), Layout(cols=2)]


def train_one_rank(path: Path) -> None:
    session.train(RunFolder(path), resume=False, stop_requested=lambda: False)


def evaluate_one_rank(path: Path, request: Path) -> None:
    session.evaluate(RunFolder(path), EvaluationRequest.read(request))


def trained(folder: Path, layout: Layout, images: str, model: str, settings: list[str]) -> RunFolder:
    folder.mkdir()
    (folder / "run.toml").write_text(RUN.format(images=images, model=model))
    config, ds = recipes.load(str(folder / "run.toml"), [*SETTINGS, *settings])
    run = RunFolder(folder / "run")
    run.claim()
    prepare_run(config, ds, layout, run, Console(quiet=True))
    run_ranks(layout.world_size, train_one_rank, run.path)
    return run


def numbers(run: RunFolder) -> tuple[list[float], dict[str, Any]]:
    lines = list(run.metrics())
    return [line["loss"] for line in lines if "loss" in line], lines[-1]["evaluation"]


CASES = {
    "pixels": ("Dense", "unet", []),
    "pixels, own loss": ("Dense", "unet", ['train.loss_target="tests.own_images:focal"', "data.flip=true"]),
    "events, own loss": ("Labelled", "Pooled", ['train.loss_target="tests.own_images:focal"', "data.shift=[3,9]"]),
    "own": ("Own", "unet", ['train.loss_target="tests.own_images:squares"']),
}


@pytest.mark.parametrize("case", CASES)
def test_tiles_train_and_evaluate_as_one_rank(tmp_path: Path, case: str) -> None:
    images, model, settings = CASES[case]
    runs = [trained(tmp_path / str(number), one, images, model, settings) for number, one in enumerate(LAYOUTS)]
    (losses, figures), *others = [numbers(run) for run in runs]
    assert len(set(losses)) == 3
    for other_losses, other in others:
        assert other_losses == pytest.approx(losses, abs=2e-6)
        assert other["loss"] == pytest.approx(figures["loss"], abs=2e-6)
        assert (other["events"], other["counted"]) == (figures["events"], figures["counted"])
        assert sum(map(sum, other["confusion"])) == sum(map(sum, figures["confusion"]))
    assert (runs[0].path / "predictions.csv").exists() == (images == "Labelled")
    assert all(("accuracy" in line) == (images != "Own") for line in runs[0].metrics() if "loss" in line)


@pytest.mark.parametrize("layout", [Layout(data=3), Layout(data=2, rows=2)])
def test_every_held_out_image_counts_once(tmp_path: Path, layout: Layout) -> None:
    """An odd number of images: some rank repeats the last one to have as many batches."""
    run = trained(tmp_path / "one", Layout(), "Dense", "unet", [])
    _, figures = numbers(run)
    assert figures["events"] == 5, "or there is no surplus"
    index = session.open_run(run)[0].index
    EvaluationRequest(
        checkpoint=run.checkpoints / "last",
        files=(),
        events=run.events_file,
        positions=tuple(index.positions("validation").tolist()),
        layout=layout,
        predictions=tmp_path / "none.csv",
        evaluation=tmp_path / "figures.json",
    ).write(tmp_path / "request.json")
    run_ranks(layout.world_size, evaluate_one_rank, run.path, tmp_path / "request.json")
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["loss"] == pytest.approx(figures["loss"], abs=2e-6)
    assert (found["events"], found["counted"]) == (figures["events"], "pixels")
    assert sum(map(sum, found["confusion"])) == figures["events"] * 40 * 56
    assert found["balanced_accuracy"]["value"] == pytest.approx(figures["balanced_accuracy"]["value"], abs=1e-3)
    assert not (tmp_path / "none.csv").exists()
