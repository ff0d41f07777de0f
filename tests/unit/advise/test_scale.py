"""A scaling study without its jobs: its points, its options, the order of its jobs, and how it is resumed."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lartpc_ds.advise.scale.scale import ScaleRequest, scale
from lartpc_ds.advise.scale.scale_folder import ScaleFolder
from lartpc_ds.advise.scale.scale_points import (
    ScaleTrial,
    chosen_scalings,
    grid_of,
    make_trials,
    parse_models,
    parse_modes,
    parse_ranks,
)
from lartpc_ds.advise.trials.trial_job import TrialEnd
from lartpc_ds.config import recipes
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.report.scaling import PHASES, Mode, Sample, Scaling


def trials(
    *overrides: str,
    models: tuple[str, ...] = ("resnet18",),
    modes: tuple[Mode, ...] = ("data", "tiles", "pipe"),
    scalings: tuple[Scaling, ...] = ("weak", "strong"),
    ranks: tuple[int, ...] = (1, 2, 4),
) -> list[ScaleTrial]:
    config, ds = recipes.load("microboone-full", ["data.batch=2", *overrides])
    return make_trials(config, ds, models=models, modes=modes, scalings=scalings, ranks=ranks, threads=1)


def shapes(found: list[ScaleTrial]) -> list[tuple[Layout, int, int]]:
    """Layout, micro-batches and global batch of each point."""
    for trial in found:
        assert trial.config.layout.fit(trial.point.ranks, "ranks") == trial.point.layout
        assert (trial.config.data.batch, trial.config.train.accumulate) == (trial.point.batch, trial.point.accumulate)
    return [(trial.point.layout, trial.point.accumulate, trial.point.global_batch) for trial in found]


def test_weak_scaling_fixes_the_events_of_a_rank_and_strong_scaling_the_global_batch() -> None:
    found = shapes(trials("train.accumulate=3", modes=("data",)))
    assert found[:3] == [(Layout(data=size), 3, 6 * size) for size in (1, 2, 4)]
    assert found[3:] == [(Layout(data=1), 12, 24), (Layout(data=2), 6, 24), (Layout(data=4), 3, 24)]


def test_sizes_that_do_not_divide_each_other_share_the_next_batch_that_all_divide() -> None:
    assert shapes(trials(modes=("data",), scalings=("strong",), ranks=(2, 3))) == [
        (Layout(data=2), 3, 12),
        (Layout(data=3), 2, 12),
    ]


def test_tiles_and_stages_share_one_event() -> None:
    assert shapes(trials(modes=("tiles",))) == [
        (Layout(), 1, 2),
        (Layout(rows=2), 1, 2),
        (Layout(rows=2, cols=2), 1, 2),
    ]
    assert shapes(trials(modes=("pipe",))) == [(Layout(pipe=size), 4, 8) for size in (1, 2, 4)]
    assert shapes(trials("train.accumulate=6", modes=("pipe",)))[1] == (Layout(pipe=2), 6, 12)


@pytest.mark.parametrize(
    ("tiles", "grid"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (6, (3, 2)), (8, (4, 2)), (16, (4, 4))]
)
def test_grids_have_more_rows_than_columns(tiles: int, grid: tuple[int, int]) -> None:
    assert grid_of(tiles) == grid


def test_points_of_two_series_share_a_job() -> None:
    found = {(trial.point.mode, trial.point.scaling, trial.point.ranks): trial for trial in trials()}
    assert len(found) == 12
    assert found["data", "weak", 1].key == found["tiles", "strong", 1].key
    assert found["data", "strong", 1].key == found["pipe", "strong", 1].key
    assert found["data", "weak", 4].key == found["data", "strong", 4].key
    assert len({trial.key for trial in found.values()}) == 9


def test_the_axes_of_the_run_are_replaced_and_named_cuts_with_them() -> None:
    named = ("layout.pipe=2", "layout.rows=2", 'layout.cuts=["layer3_0"]')
    data, *_ = trials(*named, modes=("data",))
    assert (data.config.layout.rows, data.config.layout.cuts) == (1, "balanced")
    stages = trials(*named, modes=("pipe",))
    assert [trial.config.layout.cuts for trial in stages] == ["balanced", ("layer3_0",), "balanced"]


def test_networks_take_the_place_of_the_runs_own() -> None:
    found = trials(models=("resnet34", "convnext"), modes=("data",), scalings=("weak",))
    assert [trial.config.model.name for trial in found] == 3 * ["resnet34"] + 3 * ["convnext"]
    config, _ = recipes.load("microboone-full", ['model.target="mine:network"'])
    assert parse_models(None, config) == ("mine:network",)
    with pytest.raises(UserError, match=r"--models 'resnet18': model\.target"):
        parse_models("resnet18", config)


def test_ranks_have_the_same_threads_at_every_size() -> None:
    assert {trial.config.launch.environment["OMP_NUM_THREADS"] for trial in trials()} == {"1"}
    forwarded = trials('launch.forward=["OMP_NUM_THREADS"]')
    assert {len(trial.config.launch.environment) for trial in forwarded} == {0}


@pytest.mark.parametrize("text", ["0", "a", "", "1,,2", "1.5", "-1", "1;2", "1,9"])
def test_ranks_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"--ranks .*from 1 to 8, as the file has 8 slots, such as 1,2"):
        parse_ranks(text, 8, 8, "the file has 8 slots")


def test_ranks_in_any_order_or_by_default() -> None:
    assert parse_ranks("4, 1,2,1", 2, None, "") == (1, 2, 4)
    assert parse_ranks(None, 2, None, "") == (1, 2)


def test_modes_in_any_order_or_all() -> None:
    assert parse_modes("tiles, data,tiles") == ("data", "tiles")
    assert parse_modes("all") == ("data", "tiles", "pipe")
    with pytest.raises(UserError, match=r"--mode 'rows': must be of data, tiles and pipe"):
        parse_modes("rows")


def test_tiles_and_stages_have_no_weak_scaling() -> None:
    assert chosen_scalings(False, False, ("data", "tiles")) == ("weak", "strong")
    assert chosen_scalings(True, True, ("tiles",)) == ("weak", "strong")
    assert chosen_scalings(True, False, ("data",)) == ("weak",)
    assert chosen_scalings(False, True, ("pipe",)) == ("strong",)
    with pytest.raises(UserError, match=r"--weak with --mode tiles,pipe: .*does not grow.*--strong"):
        chosen_scalings(True, False, ("data", "tiles", "pipe"))


def test_the_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    folder, found = ScaleFolder(tmp_path / "scale"), trials()
    kept = Sample(found[0].name, 2, {"step_seconds": 1.0})
    with folder.claimed():
        folder.write_plan({"steps": 3}, ["events.h5"], found)
    folder.keep("a-2", kept)
    with folder.results_file.open("a") as stream:
        stream.write('{"key": "cut sho')
    assert folder.read_plan({"steps": 3}) == (("events.h5",), found)
    assert folder.results() == {"a-2": kept}
    with pytest.raises(UserError, match=r"another scaling study:\n  steps: was 3, is 4"):
        folder.read_plan({"steps": 4})
    assert folder.plot_file("mine:network").name == "scale-mine_network.png"


class TestStudy:
    """A study whose jobs are played."""

    @pytest.fixture
    def work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        return tmp_path

    @pytest.fixture
    def request_of(self, work: Path) -> ScaleRequest:
        files = ('data.files=["events.h5"]', "train.accumulate=2")
        return ScaleRequest("sbnd", "1,2", "data,tiles", repeats=2, out=work / "out", overrides=files)

    @pytest.fixture
    def play(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Layout]]:
        def play(stop_at: int = 0, dies: Layout | None = None) -> list[Layout]:
            ran: list[Layout] = []

            def job(config: Any, ds: Any, site: Any, *_: Any) -> TrialEnd | None:
                ran.append(config.layout.fit(site.world_size, "ranks"))
                line: dict[str, Any] = dict.fromkeys([f"{phase}_seconds" for phase in PHASES], 0.1)
                line |= {"step_seconds": 1.0, "straggler_factor": 1.0, "peak_bytes": len(ran)}
                line |= {"busy_seconds": [0.5] * ran[-1].world_size}
                if len(ran) == stop_at:
                    return None
                return TrialEnd(failure="it died") if ran[-1] == dies else TrialEnd((line, line))

            monkeypatch.setattr("lartpc_ds.advise.scale.scale.run_trial_job", job)
            return ran

        return play

    def test_repeats_go_forwards_and_backwards(
        self, request_of: ScaleRequest, play: Callable[..., list[Layout]], work: Path
    ) -> None:
        ran = play()
        assert scale(request_of, Console(file=io.StringIO())) == 0
        once = [Layout(), Layout(data=2), Layout(), Layout(rows=2)]  # (1 rank twice: with 2 and with 4 micro-batches)
        assert ran == [*once, *reversed(once)]
        assert {path.name for path in (work / "out").iterdir()} == {
            *("lock", "scale.json", "scale.jsonl", "scale.csv", "scale-ranks.csv", "scale-resnet18.png")
        }
        samples = [json.loads(line) for line in (work / "out" / "scale.jsonl").read_text().splitlines()]
        assert [sample["repeat"] for sample in samples] == 4 * [1] + 4 * [2]

    def test_a_stopped_study_goes_on_where_it_was(
        self, request_of: ScaleRequest, play: Callable[..., list[Layout]]
    ) -> None:
        play(stop_at=4)
        console = Console(file=io.StringIO(), record=True, width=200)
        assert scale(request_of, console) == 75
        assert "--resume" in console.export_text()
        ran = play()
        assert scale(replace(request_of, resume=True), console) == 0
        assert len(ran) == 5 and console.export_text().count("known") == 3
        with pytest.raises(UserError, match="another scaling study:\n  repeats: was 2, is 3"):
            scale(replace(request_of, resume=True, repeats=3), console)
        with pytest.raises(UserError, match="already exists"):
            scale(request_of, console)

    def test_a_point_that_dies_is_a_row_and_is_not_tried_again(
        self, request_of: ScaleRequest, play: Callable[..., list[Layout]], work: Path
    ) -> None:
        ran = play(dies=Layout(rows=2))
        console = Console(file=io.StringIO(), record=True, width=200)
        assert scale(request_of, console) == 0
        assert ran.count(Layout(rows=2)) == 1
        assert "tiles, strong, 2 rank(s): it died" in console.export_text()

    def test_without_any_point_that_ran_it_fails(
        self, request_of: ScaleRequest, play: Callable[..., list[Layout]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        play(dies=Layout(rows=2))
        assert scale(replace(request_of, modes="tiles", ranks="2"), Console(file=io.StringIO())) == 1
        assert "no point ran to its end" in capsys.readouterr().err

    def test_says_who_shares_cores(
        self, request_of: ScaleRequest, play: Callable[..., list[Layout]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        play()
        monkeypatch.setattr("lartpc_ds.advise.scale.scale.shared_cores", lambda: 1)
        console = Console(file=io.StringIO(), record=True, width=200)
        scale(replace(request_of, modes="data"), console)
        assert "2 ranks of 1 thread(s) share 1 core(s): oversubscribed" in console.export_text()

    def test_ranks_share_the_cores_by_the_largest_size(
        self,
        request_of: ScaleRequest,
        play: Callable[..., list[Layout]],
        monkeypatch: pytest.MonkeyPatch,
        work: Path,
    ) -> None:
        play()
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr("lartpc_ds.advise.scale.scale.shared_cores", lambda: 8)
        scale(replace(request_of, modes="data"), Console(file=io.StringIO()))
        with (work / "out" / "scale.csv").open(newline="") as stream:
            assert [row["threads_per_rank"] for row in csv.DictReader(stream)] == 4 * ["4"]

    def test_refuses_what_cannot_be_compared(self, request_of: ScaleRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "many")
        with pytest.raises(UserError, match="OMP_NUM_THREADS = 'many': must be a whole number"):
            scale(request_of, Console(file=io.StringIO()))
