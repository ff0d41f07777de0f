import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.progress_bar import event_bar
from lartpc_ds.jobs.supervise.progress import JobDisplay

INTERVAL = {"value": 0.75, "low": 0.7, "high": 0.8}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.claim()
    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since some start; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Screen:
    """A terminal of wide lines, or the file that a job's output is redirected to."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.stream = io.StringIO()
        self.console = Console(file=self.stream, force_terminal=terminal, width=200, color_system=None)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.stream.getvalue().splitlines()]


def step_line(step: int, **values: Any) -> dict[str, Any]:
    line = {"step": step, "loss": 1.25, "accuracy": 0.5, "lr": 1e-3, "events": 16 * step}
    return line | {"step_seconds": 2.0, "peak_bytes": 3 * 2**29} | values


def test_a_redirected_job_gets_a_line_now_and_then_and_the_last(folder: RunFolder, clock: list[float]) -> None:
    screen = Screen()
    with JobDisplay(folder, 10, screen.console, verbose=False) as display:
        for step in range(1, 11):
            folder.append_metrics(step_line(step))
            display.poll()
            clock[0] += 4.0
    shown = screen.lines()
    assert [line.split()[1] for line in shown] == ["1/10", "5/10", "9/10", "10/10"]
    assert shown[0] == "step 1/10  loss 1.2500  accuracy 0.500  8 events/s  peak 1.50 GiB"


def test_skipped_steps_are_shown_once_there_are_any(folder: RunFolder, clock: list[float]) -> None:
    screen = Screen()
    with JobDisplay(folder, 2, screen.console, verbose=False) as display:
        for step, skipped in ((1, 0), (2, 1)):
            folder.append_metrics(step_line(step, loss_scale=32768.0, skipped_steps=skipped))
            clock[0] += 20.0
            display.poll()
    first, second = screen.lines()
    assert first.endswith("GiB") and second.endswith("GiB  1 steps skipped")


def evaluated(events: int, classes: list[str], confusion: list[list[int]]) -> dict[str, Any]:
    rates = [INTERVAL] * len(classes)
    figures = {"accuracy": INTERVAL, "balanced_accuracy": INTERVAL, "efficiency": rates, "purity": rates}
    return {"events": events, "classes": classes, "confusion": confusion, "loss": 0.5, **figures}


def test_targets_of_a_users_own_have_a_loss_only(folder: RunFolder, clock: list[float]) -> None:
    screen, nothing = Screen(), dict.fromkeys(("value", "low", "high"))
    line = step_line(1)
    del line["accuracy"]
    with JobDisplay(folder, 1, screen.console, verbose=False) as display:
        folder.append_metrics(line)
        evaluation = evaluated(9, [], []) | {"accuracy": nothing, "balanced_accuracy": nothing}
        folder.append_metrics({"step": 1, "evaluation": evaluation, "seconds": 1.5})
        display.poll()
    assert screen.lines() == [
        "step 1/1  loss 1.2500  8 events/s  peak 1.50 GiB",
        "step 1: 9 held-out events: loss 0.5000, balanced accuracy - in 1.5 s",
    ]


def test_an_evaluation_is_always_shown(folder: RunFolder, clock: list[float]) -> None:
    screen = Screen()
    with JobDisplay(folder, 10, screen.console, verbose=False) as display:
        folder.append_metrics(step_line(1))
        for counts in ([[50, 10], [0, 30]], [[50, 40], [0, 0]]):
            evaluation = evaluated(90, ["nue", "numu"], counts)
            folder.append_metrics({"step": 1, "evaluation": evaluation, "seconds": 3.21})
        display.poll()
    assert screen.lines()[1:] == [
        "step 1: 90 held-out events: loss 0.5000, balanced accuracy 0.750 [0.700, 0.800] in 3.2 s",
        "step 1: 90 held-out events: loss 0.5000, balanced accuracy 0.750 [0.700, 0.800] without numu in 3.2 s",
    ]


def test_half_a_line_waits_for_its_other_half(folder: RunFolder, clock: list[float]) -> None:
    screen = Screen()
    text = json.dumps(step_line(1)) + "\n"
    with JobDisplay(folder, 10, screen.console, verbose=False) as display:
        display.poll()
        folder.metrics_file.write_text(text[:30])
        display.poll()
        assert screen.lines() == []
        folder.metrics_file.write_text(text)
        display.poll()
        display.poll()
    assert len(screen.lines()) == 1


def test_a_resumed_job_shows_only_what_is_new(folder: RunFolder, clock: list[float]) -> None:
    screen = Screen()
    folder.append_metrics(step_line(5))
    with JobDisplay(folder, 10, screen.console, verbose=False, start_step=5) as display:
        display.poll()
        assert screen.lines() == []
        folder.append_metrics(step_line(6))
        display.poll()
    assert [line.split()[1] for line in screen.lines()] == ["6/10"]


@pytest.mark.parametrize("verbose", [True, False])
def test_the_launcher_and_rank_0_are_shown_on_request(folder: RunFolder, verbose: bool) -> None:
    screen = Screen()
    (folder.logs / "rank0.log").write_text("of an earlier job\n")
    with JobDisplay(folder, 10, screen.console, verbose=verbose) as display:
        (folder.logs / "launcher.log").write_text("[bold]starting[/bold] 2 ranks\n")
        with (folder.logs / "rank0.log").open("ab") as stream:
            stream.write(b"caf\xe9 ready\nnot yet comp")
        (folder.logs / "rank1.log").write_text("from rank 1\n")
        display.poll()
    assert screen.lines() == (["[bold]starting[/bold] 2 ranks", "caf\ufffd ready"] if verbose else [])


def test_a_terminal_has_one_live_line(folder: RunFolder, clock: list[float]) -> None:
    screen = Screen(terminal=True)
    with JobDisplay(folder, 10, screen.console, verbose=False, start_step=2) as display:
        for step in (3, 4):
            folder.append_metrics(step_line(step))
            clock[0] += 60
            display.poll()
        display._bar.refresh()
        assert "loss 1.2500" in screen.stream.getvalue() and "4/10" in screen.stream.getvalue()
        display.say("a message [of] /any/ kind")
    assert "a message [of] /any/ kind" in screen.stream.getvalue()
    assert "step 4/10" not in screen.stream.getvalue(), "plain lines are for files"


def test_a_bar_shows_before_a_rate_is_known() -> None:
    screen = Screen(terminal=True)
    with event_bar(screen.console, "simulating", 2) as show:
        show(2)
    assert "simulating" in screen.stream.getvalue() and "2/2" in screen.stream.getvalue()
