"""A whole small run as a user makes it: train on two ranks, evaluate on one and two, report; and what it leaves."""

import csv
import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from lartpc_ds.config.run_folder import RunFolder
from tests.integration.cli import Finished, overrides, run_cli
from tests.small_runs import write_events, write_run_toml

CHATTER = re.compile(r"deepspeed\.|\[(INFO|WARNING|ERROR)\]|launch\.py|runner\.py|Warning", re.IGNORECASE)
SETTINGS = ['train.ds_config="zero2_bf16"', "train.eval_every=2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_run_toml(folder / "run.toml", write_events(folder / "events.h5", 40))
    return folder


@pytest.fixture(scope="module")
def trained(work: Path) -> tuple[RunFolder, Finished]:
    """A finished run on two ranks; tests read it, and only `evaluate` adds to it."""
    finished = run_cli(work, "train", "run.toml", *overrides(SETTINGS), "--devices", "2", "--run-dir", "run")
    assert finished.code == 0, finished.out + finished.err
    return RunFolder(work / "run"), finished


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def strict_json(text: str) -> Any:
    """JSON as every other tool reads it: NaN is none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_run_folder_holds_what_the_architecture_says(trained: tuple[RunFolder, Finished]) -> None:
    folder, _ = trained
    names = {path.name for path in folder.path.iterdir() if not re.match(r"(predictions|evaluation)-", path.name)}
    assert names == {
        "config.toml", "ds_config.json", "metrics.jsonl", "checkpoints", "predictions.csv", "logs", "DONE",
        "events.csv", "job.json", "files.json", "findings.txt",
    }  # fmt: skip
    assert {"rank0.log", "rank1.log"} <= {path.name for path in folder.logs.iterdir()}
    assert not (folder.logs / "control.json").exists()  # its token was good for this job only
    assert json.loads((folder.logs / "ranks.json").read_text()).keys() == {"0", "1"}
    assert (folder.checkpoints / "last").resolve().name == "step_0000004"
    assert (folder.checkpoints / "best" / "manifest.json").is_file()
    assert not list(folder.path.rglob("*.partial*"))


def test_metrics_have_a_line_for_each_step(trained: tuple[RunFolder, Finished]) -> None:
    lines = list(trained[0].metrics())
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    assert [line["events"] for line in training] == [4, 8, 12, 16]  # 2 events a rank, 2 ranks
    for line in training:
        assert {"step", "loss", "lr", "events", "step_seconds", "peak_bytes"} <= line.keys()
        assert line["loss"] > 0 and line["lr"] > 0 and line["step_seconds"] > 0
        for phase in ("read", "forward", "backward", "update", "reduce"):
            assert 0 < line[f"{phase}_seconds"] < line["step_seconds"], phase
        assert 1 <= line["straggler_factor"] <= 2  # there are two ranks
        busy = line["busy_seconds"]
        assert len(busy) == 2 and max(busy) / mean(busy) == pytest.approx(line["straggler_factor"], rel=1e-3)
        assert line["peak_bytes"] > 2**20 and isinstance(line["peak_bytes"], int)
    assert [line["step"] for line in lines if "evaluation" in line] == [2, 4]


def test_metrics_are_json(trained: tuple[RunFolder, Finished]) -> None:
    for line in trained[0].metrics_file.read_text().splitlines():
        strict_json(line)


def test_predictions_are_the_held_out_events(trained: tuple[RunFolder, Finished]) -> None:
    folder, _ = trained
    predictions = rows_of(folder.path / "predictions.csv")
    held_out = [row for row in rows_of(folder.events_file) if row["split"] == "validation"]
    identity = ("file", "index", "run", "subrun", "event")
    assert len(held_out) > 5
    assert [[row[key] for key in identity] for row in predictions] == [
        [row[key] for key in identity] for row in held_out
    ]
    assert [row["truth"] for row in predictions] == [row["label"] for row in held_out]
    for row in predictions:
        scores = {name: float(row[f"score_{name}"]) for name in ("electron", "gamma", "muon")}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert scores[row["prediction"]] == max(scores.values())


def test_the_terminal_shows_our_words_only(trained: tuple[RunFolder, Finished]) -> None:
    _, finished = trained
    assert finished.err == ""
    assert "step 4/4" in finished.out and "balanced accuracy" in finished.out
    spoken = [line for line in finished.out.splitlines() if CHATTER.search(line)]
    assert spoken == []


def test_evaluate_does_not_depend_on_the_number_of_ranks(trained: tuple[RunFolder, Finished], work: Path) -> None:
    folder, _ = trained
    before = (folder.path / "predictions.csv").read_bytes()
    figures, scores = [], []
    (work / "hosts").write_text("localhost slots=2\n")
    for where in (["--devices", "1"], ["--hostfile", "hosts"]):
        known = set(folder.path.iterdir())
        finished = run_cli(work, "evaluate", "run", *where)
        assert finished.code == 0, finished.out + finished.err
        assert finished.err == "" and "balanced accuracy" in finished.out
        fresh = {path.suffix: path for path in set(folder.path.iterdir()) - known}
        assert set(fresh) == {".json", ".csv"}
        figures.append(json.loads(fresh[".json"].read_text()))
        scores.append(rows_of(fresh[".csv"]))
    during = [line["evaluation"] for line in folder.metrics() if "evaluation" in line][-1]
    for one in figures:
        assert one["confusion"] == during["confusion"]
        assert one["balanced_accuracy"] == during["balanced_accuracy"]
        assert one["loss"] == pytest.approx(during["loss"], rel=1e-6)
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
    assert scores[0] == scores[1]
    assert (folder.path / "predictions.csv").read_bytes() == before


def test_report_prints_the_table(trained: tuple[RunFolder, Finished], work: Path) -> None:
    finished = run_cli(work, "report", "run")
    assert (finished.code, finished.err) == (0, "")
    for word in ("4 of 4, 16 events", "data 2", "zero2_bf16", "held-out events", "lartpc-ds evaluate"):
        assert word in finished.out


def test_dry_run_prints_everything_and_leaves_nothing(work: Path) -> None:
    before = sorted(work.rglob("*"))
    arguments = ["train", "run.toml", *overrides(SETTINGS), "--devices", "2", "--run-dir", "new/run", "--dry-run"]
    finished = run_cli(work, *arguments)
    assert (finished.code, finished.err) == (0, "")
    assert sorted(work.rglob("*")) == before
    for word in (
        "# config.toml",
        "# ds_config.json",
        "max_steps = 4",
        '"train_batch_size": 4',
        "--module lartpc_ds.training.worker",
    ):
        assert word in finished.out
    assert "deepspeed.launcher.launch" in finished.out.splitlines()[-1]


def test_verbose_shows_deepspeed_and_its_csv_monitor_writes(work: Path) -> None:
    monitor = ["ds.csv_monitor.enabled=true", f'ds.csv_monitor.output_path="{work / "csv"}"']
    finished = run_cli(work, "train", "run.toml", *overrides(monitor), "--run-dir", "monitored", "--verbose")
    assert finished.code == 0, finished.out + finished.err
    assert CHATTER.search(finished.out)
    written = {path.stem: path.read_text().splitlines() for path in (work / "csv").rglob("*.csv")}
    assert any("lr" in name for name in written) and any("loss" in name for name in written), list(written)
    for lines in written.values():
        assert len(lines) == 1 + 4  # a heading, and a row a step
