"""The baselines of `bench compare` train what ours trains; one that did not would be no baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lartpc_ds.advise.short_runs import baselines
from lartpc_ds.config import recipes
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.applied import applied
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.layout import Layout
from lartpc_ds.training import session
from tests.ranks import run_ranks
from tests.small_runs import write_events, write_run_toml

# with AdamW, or with gradients that are always clipped, a sum over the ranks would pass for their mean
SETTINGS = [
    'ds.optimizer={type="SGD",params={lr=0.02,momentum=0.9}}',
    'ds.scheduler={type="constant",params={}}',
    "data.split={train=1.0,validation=0.0}",
    "train.max_steps=3",
]
NO_CLIPPING, CLIPPING = 1e6, 0.5
DATA, PIPE = Layout(data=2), Layout(pipe=2)


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    return write_run_toml(folder / "run.toml", write_events(folder / "events.h5", 20))


def prepared(folder: Path, toml: Path, layout: Layout, zero: int, clipping: float, accumulate: int = 1) -> RunFolder:
    config, ds = recipes.load(str(toml), [*SETTINGS, f"ds.gradient_clipping={clipping}"])
    config, ds = applied(config, ds, Candidate(layout, batch=2, accumulate=accumulate, zero=zero))
    run = RunFolder(folder)
    run.claim()
    prepare_run(config, ds, layout, run, Console(quiet=True))
    return run


def train_ours(path: Path) -> None:
    session.train(RunFolder(path), resume=False, stop_requested=lambda: False)


def losses_of_ours(run: RunFolder) -> list[float]:
    run_ranks(2, train_ours, run.path)
    return [line["loss"] for line in run.metrics() if "loss" in line]


def run_baselines(programs: Sequence[tuple[str, Path]]) -> list[list[float]]:
    """The losses of one rank in every step, by program, all in the same process."""
    runs = [getattr(baselines, name)(RunFolder(path)) for name, path in programs]
    return [[line["loss"] for line in lines] for lines in runs]


def mean_losses(programs: Sequence[tuple[str, Path]]) -> list[list[float]]:
    ranks: list[Any] = run_ranks(2, run_baselines, programs)
    return [[(a + b) / 2 for a, b in zip(first, second, strict=True)] for first, second in zip(*ranks, strict=True)]


@pytest.mark.parametrize("clipping", [NO_CLIPPING, CLIPPING])
def test_every_data_parallel_baseline_takes_the_steps_of_ours(tmp_path: Path, toml: Path, clipping: float) -> None:
    runs = [prepared(tmp_path / str(zero), toml, DATA, zero, clipping) for zero in range(4)]
    programs = [("ddp", runs[0].path), ("fsdp2", runs[0].path), *(("deepspeed_zero", run.path) for run in runs)]
    found = mean_losses(programs)
    expected = losses_of_ours(runs[0])
    assert len(set(expected)) == 3
    for (name, path), losses in zip(programs, found, strict=True):
        assert losses == pytest.approx(expected, rel=1e-4), (name, path.name)


def test_deepspeeds_own_pipeline_takes_the_steps_of_ours(tmp_path: Path, toml: Path) -> None:
    run = prepared(tmp_path / "run", toml, PIPE, 1, CLIPPING, accumulate=3)
    (found,) = mean_losses([("deepspeed_pipe", run.path)])
    assert found == pytest.approx(losses_of_ours(run), rel=1e-4)
