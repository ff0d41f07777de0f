"""`lartpc-ds tune` through the real launcher: trials that die, a stop request, and what is there to go on with."""

import csv
import json
import signal
from pathlib import Path

import pytest

from lartpc_ds.config import recipes
from tests.integration.cli import Job, overrides, run_cli, started, wait_until
from tests.small_runs import write_events, write_run_toml


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 20))
    return tmp_path


def tuning(*settings: str, stages: str, steps: int = 1) -> list[str]:
    fixed = ["--layouts", "1", "--devices", "1", "--hardware", "cpu", "--out", "tuned"]
    return ["tune", "run.toml", "--steps", str(steps), "--stages", stages, *fixed, *overrides(settings)]


def results(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work / "tuned" / "tune.jsonl").read_text().splitlines()]


def assert_nothing_left(job: Job) -> None:
    assert [process.cmdline() for process in job.processes()] == []


def test_trials_that_die_are_rows_and_the_fastest_other_wins(work: Path) -> None:
    toml = work / "run.toml"
    toml.write_text(toml.read_text().replace("width = 4\n", ""))
    (work / "ds_configs").mkdir()
    (work / "faults").mkdir()
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "TRIAL_FAULTS": str(work / "faults")}
    target = 'model.target="tests.integration.users_models:dies_in_trials"'
    with started(work, *tuning(target, stages="0,1,2"), environment=environment) as job:
        finished = job.finish(timeout_seconds=300)
        assert_nothing_left(job)
    assert finished.code == 0, finished.out + finished.err
    killed, no_memory, trained = results(work)
    assert str(killed["failure"]).startswith("out of memory, or killed from outside")
    assert str(no_memory["failure"]).startswith("out of memory: "), no_memory
    assert trained["failure"] == "" and isinstance(trained["measured_step_seconds"], float)
    assert (work / "faults" / "killed.oom").read_text() == "1000\n"  # the kernel would take it first
    assert "the only one of 3 trials that ran to its end" in finished.out
    with (work / "tuned" / "tune.csv").open(newline="") as stream:
        assert [row["failure"] == "" for row in csv.DictReader(stream)] == [True, False, False]
    assert (work / "tuned" / "tune.png").read_bytes().startswith(b"\x89PNG")
    (written,) = (work / "ds_configs").iterdir()
    assert written.name == "zero2_fp32_tuned-run.json"
    config, ds = recipes.load(str(work / "tuned" / "run-tuned.toml"))
    assert ds == json.loads(written.read_text()) and config.train.max_steps == 4 and config.data.split.validation == 0.3
    assert f"lartpc-ds train {work / 'tuned' / 'run-tuned.toml'} --devices 1" in finished.out


def test_a_stopped_tuning_keeps_what_has_ended_and_goes_on(work: Path) -> None:
    arguments = tuning(stages="0,2", steps=30)
    with started(work, *arguments) as job:
        second = work / "tuned" / "trial02" / "metrics.jsonl"
        wait_until(second.exists, "a step of the second trial", 200)
        job.process.send_signal(signal.SIGINT)
        finished = job.finish()
        assert_nothing_left(job)
    assert finished.code == 75, finished.out + finished.err
    assert "--resume" in finished.out
    (first,) = results(work)
    again = run_cli(work, *arguments)
    assert again.code == 2 and "--resume" in again.err
    other = run_cli(work, *tuning(stages="0,1", steps=30), "--resume")
    assert other.code == 2 and "stages: was [0, 2], is [0, 1]" in other.err
    resumed = run_cli(work, *arguments, "--resume", timeout_seconds=200)
    assert resumed.code == 0, resumed.out + resumed.err
    assert "known" in resumed.out
    assert results(work)[0] == first and len(results(work)) == 2
