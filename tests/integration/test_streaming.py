"""A run in strips through the command line is the run without them, in training and in evaluation."""

from pathlib import Path
from typing import Any

import pytest

from lartpc_ds.config.run_folder import RunFolder
from tests.integration.cli import Finished, overrides, run_cli
from tests.small_runs import write_events, write_run_toml

SETTINGS = [
    'model.norm="layer"',
    "train.max_steps=3",
    'ds.optimizer={type="SGD",params={lr=0.01,momentum=0.9}}',
    'ds.scheduler={type="constant",params={}}',
]
STREAM = ["memory.stream_strips=3", 'memory.stream_until="layer2_0"']
RUNS = {"whole": ([], 1), "strips": (STREAM, 1), "stage3": ([*STREAM, 'train.ds_config="zero3_fp32"'], 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Finished]]:
    work = tmp_path_factory.mktemp("streaming")
    write_run_toml(work / "run.toml", write_events(work / "events.h5", 40))
    finished = {}
    for name, (settings, devices) in RUNS.items():
        batch = f"data.batch={2 // devices}"
        arguments = ["train", "run.toml", *overrides([*SETTINGS, *settings, batch]), "--devices", str(devices)]
        finished[name] = run_cli(work, *arguments, "--run-dir", name)
        assert finished[name].code == 0, finished[name].out + finished[name].err
    return work, finished


def lines(work: Path, name: str, key: str) -> list[Any]:
    return [line[key] for line in RunFolder(work / name).metrics() if key in line]


def test_strips_train_and_evaluate_as_one_piece(runs: tuple[Path, dict[str, Finished]]) -> None:
    work, _ = runs
    losses = {name: lines(work, name, "loss") for name in RUNS}
    (figures,) = lines(work, "whole", "evaluation")
    assert len(set(losses["whole"])) == 3
    for name in ("strips", "stage3"):
        assert losses[name] == pytest.approx(losses["whole"], rel=1e-5), name
        (streamed,) = lines(work, name, "evaluation")
        assert streamed["confusion"] == figures["confusion"]
        assert streamed["loss"] == pytest.approx(figures["loss"], rel=1e-5)


def test_the_plan_says_what_streams(runs: tuple[Path, dict[str, Finished]]) -> None:
    out = {name: " ".join(finished.out.split()) for name, finished in runs[1].items()}
    assert "streaming stem to layer1_1 in 3 strips of at most 33 of 33 rows (overlap" in out["strips"], out["strips"]
    assert "whole maps from layer2_0" in out["strips"]
    assert "strips" not in out["whole"]


def test_evaluate_streams(runs: tuple[Path, dict[str, Finished]]) -> None:
    work, _ = runs
    finished = run_cli(work, "evaluate", "strips", "--devices", "1")
    assert finished.code == 0 and finished.err == "", finished.out + finished.err
