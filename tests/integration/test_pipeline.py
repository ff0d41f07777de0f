"""Pipeline stages as a user runs them: trained, stopped, resumed and evaluated through the launcher."""

import json
import signal
from pathlib import Path

import pytest
import torch

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.models.build import build_model
from lartpc_ds.training import session
from tests.integration.cli import overrides, run_cli, started, steps
from tests.ranks import run_ranks
from tests.small_runs import prepared, write_events, write_run_toml

SETTINGS = ['train.ds_config="zero1_bf16"', "layout.pipe=2", "train.accumulate=4", "train.eval_every=5"]
SETTINGS += ['ds.scheduler={type="constant",params={}}']  # else a step would depend on how many there are
SGD = 'ds.optimizer={type="SGD",params={lr=0.005,momentum=0.9}}'
STEPS = 40


def training(*settings: str, run_dir: str) -> list[str]:
    return ["train", "run.toml", *overrides([*SETTINGS, *settings]), "--devices", "2", "--run-dir", run_dir]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_run_toml(folder / "run.toml", write_events(folder / "events.h5", 40))
    return folder


@pytest.fixture(scope="module")
def straight(work: Path) -> RunFolder:
    """A finished run whose monitor is on; tests read it, and `evaluate` adds to it."""
    monitor = ["ds.csv_monitor.enabled=true", f'ds.csv_monitor.output_path="{work / "csv"}"']
    finished = run_cli(work, *training(f"train.max_steps={STEPS}", *monitor, run_dir="straight"))
    assert finished.code == 0 and finished.err == "", finished.out + finished.err
    assert "stage 0" in finished.out and "stage 1" in finished.out and f"step {STEPS}/{STEPS}" in finished.out
    return RunFolder(work / "straight")


def test_a_stopped_run_resumes_on_its_stages(work: Path, straight: RunFolder) -> None:
    settings = ["train.max_steps=1000000"]
    with started(work, *training(*settings, run_dir="parted"), run_dir="parted") as job:
        job.wait_for_step(3)
        job.process.send_signal(signal.SIGTERM)
        finished = job.finish()
    assert finished.code == 75, finished.out + finished.err
    stopped_at = steps(job.folder)[-1]
    last = max(STEPS, stopped_at + 1)
    other = run_cli(work, *training(f"train.max_steps={last}", 'layout.cuts="uniform"', run_dir="parted"), "--resume")
    assert other.code == 2 and "layout.cuts" in other.err
    resumed = run_cli(work, *training(f"train.max_steps={last}", run_dir="parted"), "--resume")
    assert resumed.code == 0, resumed.out + resumed.err
    assert steps(job.folder) == list(range(1, last + 1))
    parted, whole = ([line["loss"] for line in run.metrics() if "loss" in line] for run in (job.folder, straight))
    assert parted[:STEPS] == whole


def test_whoever_evaluates_needs_no_stages(work: Path, straight: RunFolder) -> None:
    weights = torch.load(straight.checkpoints / "last" / "model.pt")
    model = build_model("resnet18", planes=2, num_classes=3, width=4)
    assert list(weights) == list(model.state_dict())
    model.load_state_dict(weights)
    during = [line["evaluation"] for line in straight.metrics() if "evaluation" in line][-1]
    before = set(straight.path.iterdir())
    finished = run_cli(work, "evaluate", "straight")
    assert finished.code == 0 and finished.err == "", finished.out + finished.err
    fresh = {path.suffix: path for path in set(straight.path.iterdir()) - before}
    figures = json.loads(fresh[".json"].read_text())
    assert figures["confusion"] == during["confusion"]
    assert figures["loss"] == pytest.approx(during["loss"], rel=1e-6)
    scores = fresh[".csv"].read_text()
    assert scores == (straight.path / "predictions.csv").read_text() and len(scores.splitlines()) > 5


def test_the_monitor_reports_losses_of_training(work: Path, straight: RunFolder) -> None:
    written = {path.stem: path.read_text().splitlines() for path in (work / "csv").rglob("*.csv")}
    assert all("eval" not in name for name in written) and any("loss" in name for name in written)


def train_one_rank(path: Path) -> None:
    session.train(RunFolder(path), resume=False, stop_requested=lambda: False)


def test_a_first_stage_that_computes_only_what_is_lit(work: Path) -> None:
    """Norms of groups, because events are dealt into other micro-batches by their costs."""
    both = ["train.ds_config=zero1_fp32", "train.max_steps=4", "train.eval_every=2", "model.norm=group", SGD]
    lit = ["memory.lit_block=32", "memory.lit_until=layer2_0", 'layout.cuts=["layer2_0"]']
    finished = run_cli(work, *training(*both, *lit, run_dir="lit"))
    assert finished.code == 0 and finished.err == "", finished.out + finished.err
    told = " ".join(finished.out.split())
    assert "in at most stem to layer1_1; whole maps from layer2_0" in told and "of the time on whole maps, " in told
    assert (work / "lit" / "events.csv").read_text().splitlines()[0].endswith(",cost")
    plain = prepared(work / "plain", work / "run.toml", [*SETTINGS, *both, "layout.pipe=1"])
    run_ranks(1, train_one_rank, plain.path)
    found, expected = (
        [(line["step"], line.get("evaluation", line)["loss"]) for line in run.metrics()]
        for run in (RunFolder(work / "lit"), plain)
    )
    assert [step for step, _ in found] == [1, 2, 2, 3, 4, 4]
    assert found == [(step, pytest.approx(loss, abs=5e-6)) for step, loss in expected]
