import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.report.summary import print_evaluation, print_summary, summarise
from lartpc_ds.training import metrics
from lartpc_ds.training.prepare import Job

CLASSES = ("electron", "gamma", "muon", "pion", "kaon")
SECONDS = [30.0, 9.0, 2.0, 4.0, 3.0]  # two slow ones to warm up


def run_folder(path: Path, **data: Any) -> RunFolder:
    run = RunFolder(path)
    run.claim()
    config = RunConfig.parse({"data": data, "train": {"max_steps": 5, "ds_config": "zero1_fp32"}}, "test")
    run.write(config, {}, Job(Layout(data=2), 5, 3, (33, 49), CLASSES, 1000).as_dict())
    return run


def train(run: RunFolder, steps: int) -> None:
    for step, seconds in enumerate(SECONDS[:steps], start=1):
        peak_bytes = (3 if step == 2 else 1) * 2**30
        line = {"step": step, "loss": 1.0, "events": 16 * step, "step_seconds": seconds, "peak_bytes": peak_bytes}
        run.append_metrics(line)


def evaluation(right: int, events: int) -> dict[str, Any]:
    truths = np.arange(events) % 5
    predictions = np.where(np.arange(events) < right, truths, (truths + 1) % 5)
    return metrics.of_scores(np.eye(5, dtype=np.float32)[predictions], truths, CLASSES).as_dict()


def rows_of(run: RunFolder) -> dict[str, str]:
    rows, left_out = summarise(run)
    assert left_out == []
    return rows


def printed(show: Any, *arguments: Any) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=160, color_system=None), *arguments)
    return stream.getvalue()


def test_steps_that_float16_has_skipped(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "mine")
    train(run, 1)
    run.append_metrics({**next(iter(run.metrics())), "step": 2, "events": 32, "skipped_steps": 1})
    assert rows_of(run)["steps"] == "2 of 5, 32 events, 1 of them skipped (float16 overflow) (not finished)"


def test_a_finished_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "mine")
    train(run, 5)
    for right in (10, 75):
        run.append_metrics({"step": 5, "evaluation": evaluation(right, 100), "seconds": 1.0})
    run.done_file.touch()
    assert rows_of(run) == {
        "trained": "resnet18 on 3 x 33 x 49 (planes x wires x ticks), zero1_fp32",
        "layout": "pipe 1 x data 2 x rows 1 x cols 1",
        "steps": "5 of 5, 80 events",
        "balanced accuracy": "0.750 [0.669, 0.831] on 100 held-out events (chance 0.200)",
        "seconds per event": "0.188 (all ranks together)",  # the median, 3 s, for 16 events
        "peak memory per rank": "3.00 GiB",
        "run folder": str(tmp_path / "mine"),
    }


@pytest.mark.parametrize(
    ("downsample", "image"), [(2, "3 x 17 x 25"), ([4, 10], "3 x 9 x 5"), (1, "3 x 33 x 49"), (50, "3 x 1 x 1")]
)
def test_the_image_is_the_one_that_the_network_saw(tmp_path: Path, downsample: Any, image: str) -> None:
    assert f" on {image} (" in rows_of(run_folder(tmp_path / "mine", downsample=downsample))["trained"]


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "mine")
    train(run, 1)
    rows = rows_of(run)
    assert rows["steps"] == "1 of 5, 16 events (not finished)"
    assert rows["balanced accuracy"] == "not evaluated (no held-out events)"
    assert rows["seconds per event"].startswith("1.88 "), "one step has no warm-up to leave out"


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    rows = rows_of(run_folder(tmp_path / "mine"))
    assert rows["steps"] == "0 of 5 (not finished)"
    assert rows["seconds per event"] == rows["peak memory per rank"] == "-"


def test_another_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        summarise(RunFolder(tmp_path))


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path / name) for name in ("first", "second"))
    train(second, 3)
    text = printed(print_summary, [first, second])
    (steps,) = (line for line in text.splitlines() if "steps" in line)
    assert steps.index("0 of 5") < steps.index("3 of 5")
    assert f"next: lartpc-ds evaluate {first.path}\n" in text


def test_an_evaluation_shows_shares_of_the_true_class(tmp_path: Path) -> None:
    truths = np.array([0] * 8 + [1] * 2)
    predictions = np.array([0] * 6 + [2] * 2 + [1, 0])
    figures = metrics.of_scores(np.eye(3, dtype=np.float32)[predictions], truths, CLASSES[:3])
    lines = printed(print_evaluation, figures).splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        ["electron", "0.750", "0.000", "0.250"],
        ["gamma", "0.500", "0.500", "0.000"],
        ["muon", "-", "-", "-"],
        ["electron", "8", str(metrics.wilson(6, 8)), str(metrics.wilson(6, 7))],
        ["gamma", "2", str(metrics.wilson(1, 2)), str(metrics.wilson(1, 1))],
        ["muon", "0", "-", "0.000 [0.000, 0.658]"],
    ]
    assert f"accuracy: {metrics.wilson(7, 10)} on 10 events" in lines
    chance = "(chance 0.500 among electron, gamma: there are no events of muon)"
    assert f"balanced accuracy: {figures.balanced_accuracy} on 10 events {chance}" in lines
    assert f"loss: {figures.loss:.4f}" in lines


def test_an_evaluation_of_pixels_says_so() -> None:
    figures = metrics.of_confusion(np.array([[6, 2], [0, 2]]), 0.5, CLASSES[:2], events=3, counted="pixels")
    text = printed(print_evaluation, figures)
    assert f"accuracy: {metrics.wilson(8, 10)} on 10 pixels of 3 events" in text.splitlines()
    assert "pixels" in text.split("each class")[1].splitlines()[2]
