"""Whole runs on pipeline stages, files to evaluation, against the same run on one rank."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.layout import Layout
from lartpc_ds.training import session
from tests.ranks import run_ranks

RUN = """
[data]
target = "tests.own_images:{images}"
split = {{ train = 0.6, validation = 0.4 }}
batch = 2
seed = 9
flip = {flip}

[model]
target = "tests.own_images:{model}"
norm_scope = "all"

[layout]
gather_at = "never"

[train]
ds_config = "{ds_config}"
accumulate = 3
max_steps = 3
eval_every = 2
"""
SETTINGS = ['ds.optimizer={type="SGD",params={lr=0.05,momentum=0.9}}', 'ds.scheduler={type="constant",params={}}']
CASES = {
    "pixels": ("Dense", "flat", []),
    "events": ("Labelled", "flat_pooled", []),
    "own": ("Own", "flat", ['train.loss_target="tests.own_images:squares"']),
}


def train_one_rank(path: Path) -> None:
    session.train(RunFolder(path), resume=False, stop_requested=lambda: False)


def trained(
    folder: Path, layout: Layout, case: str, ds_config: str = "zero1_fp32", more: Sequence[str] = ()
) -> RunFolder:
    images, model, settings = CASES[case]
    folder.mkdir()
    flip = "false" if images == "Own" else "true"
    (folder / "run.toml").write_text(RUN.format(images=images, model=model, ds_config=ds_config, flip=flip))
    config, ds = recipes.load(str(folder / "run.toml"), [*SETTINGS, *settings, f"layout.pipe={layout.pipe}", *more])
    run = RunFolder(folder / "run")
    run.claim()
    prepare_run(config, ds, layout, run, Console(quiet=True))
    run_ranks(layout.world_size, train_one_rank, run.path)
    return run


@pytest.mark.parametrize(
    ("case", "layouts"),
    [("pixels", [Layout(3), Layout(2, rows=2)]), ("events", [Layout(3), Layout(2, rows=2)]), ("own", [Layout(2)])],
)
def test_stages_train_and_evaluate_as_one_rank(tmp_path: Path, case: str, layouts: list[Layout]) -> None:
    """The network has dropout: every stage must know which micro-batch it works on."""
    one = trained(tmp_path / "one", Layout(), case)
    expected = list(one.metrics())
    assert sum("evaluation" in line for line in expected) == 2
    for number, layout in enumerate(layouts):
        run = trained(tmp_path / str(number), layout, case)
        found = list(run.metrics())
        assert [line.get("step") for line in found] == [line.get("step") for line in expected]
        for line, other in zip(found, expected, strict=True):
            if "loss" in line:
                assert line["loss"] == pytest.approx(other["loss"], abs=2e-6)
                assert line["events"] == other["events"] and line.get("accuracy") == other.get("accuracy")
                assert line["stage_seconds"] > 0 and (line["halo_seconds"] > 0) == (layout.rows > 1)
                assert other["stage_seconds"] == other["halo_seconds"] == 0
            else:
                figures, others = line["evaluation"], other["evaluation"]
                assert figures["loss"] == pytest.approx(others["loss"], abs=5e-6)
                assert (figures["events"], figures["counted"]) == (others["events"], others["counted"])
                assert sum(map(sum, figures["confusion"])) == sum(map(sum, others["confusion"]))
        assert (run.path / "predictions.csv").exists() == (case == "events")
        states = [torch.load(each.checkpoints / "last" / "model.pt") for each in (one, run)]
        assert list(states[0]) == list(states[1])
        for name, value in states[0].items():
            assert float((states[1][name] - value).abs().max()) <= 2e-6, name


def test_bfloat16_maps_cross_a_stage(tmp_path: Path) -> None:
    """The middle stage receives maps in float32 and, in the same place, smaller gradients in bfloat16."""
    one = trained(tmp_path / "one", Layout(), "events", "zero0_bf16")
    staged = trained(tmp_path / "staged", Layout(3), "events", "zero0_bf16", ['layout.cuts=["2","6"]'])
    losses = [[line["loss"] for line in run.metrics() if "loss" in line] for run in (one, staged)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
