"""The figures of `bench planner`, on made-up samples; its layouts, by what the planner's applied configurations say."""

import json
from pathlib import Path
from typing import Any

import pytest

from lartpc_ds.advise.bench import planner
from lartpc_ds.advise.bench.planner import bench, figures
from lartpc_ds.advise.bench.planner_layouts import LAYOUTS, MeasuredLayout, chosen
from lartpc_ds.advise.bench.planner_measure import loaded
from lartpc_ds.advise.short_runs.short_run import Samples
from lartpc_ds.costs.applied import applied
from lartpc_ds.costs.hardware import Hardware, save
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, Problem, TimeParts
from lartpc_ds.errors import UserError
from tests.machine import GIB, machine


def row(name: str, ranks: int, memory: tuple[int, int], seconds: tuple[float, float], batch: int = 1) -> dict[str, Any]:
    return {
        "name": name,
        "group": name.split()[0],
        "ranks": ranks,
        "global_batch": batch,
        "predicted_peak_bytes": memory[0],
        "measured_peak_bytes": memory[1],
        "predicted_step_seconds": seconds[0],
        "measured_step_seconds": seconds[1],
    }


def test_errors_are_parts_of_what_was_measured_and_times_of_four_ranks_do_not_count() -> None:
    rows = [
        row("a x", 1, (110, 100), (1.0, 2.0)),
        row("a y", 4, (98, 100), (9.0, 1.0)),
        row("a z", 2, (99, 100), (3, 4)),
    ]
    found = figures(rows, 10**6)
    assert found["memory_error_median"] == pytest.approx(0.02)
    assert found["memory_error_max"] == pytest.approx(0.1)
    assert found["time_error_median"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["time_error_max"] == pytest.approx(0.5)


def test_the_recommended_layout_is_compared_with_the_fastest_of_its_group_by_the_event() -> None:
    rows = [
        row("a plain", 1, (1, 1), (4.0, 4.0)),
        row("a pipe", 2, (1, 1), (8.0, 20.0), batch=4),  # predicted best, 5 s an event
        row("b plain", 1, (1, 1), (1.0, 1.0)),
        row("b tiles", 2, (1, 1), (2.0, 2.0)),
        row("c alone", 1, (1, 1), (1.0, 1.0)),
    ]
    found = figures(rows, 10**6)
    assert [(one["group"], one["recommended"], one["fastest"], one["ratio"]) for one in found["groups"]] == [
        ("a", "a pipe", "a plain", 1.25),
        ("b", "b plain", "b plain", 1.0),
    ]
    assert found["best_rank_ratio"] == 1.25


def test_what_does_not_fit_is_not_recommended() -> None:
    rows = [row("a plain", 1, (90, 90), (4.0, 4.0)), row("a data", 2, (60, 60), (1.0, 1.0), batch=2)]
    (group,) = figures(rows, 100)["groups"]  # two ranks of 60 bytes share a machine of 100
    assert group["recommended"] == "a plain"
    assert group["ratio"] == 8.0


def test_without_times_there_are_no_figures_of_time() -> None:
    found = figures([row("a x", 4, (1, 1), (1.0, 1.0))], 10)
    assert found["time_error_median"] is None and found["best_rank_ratio"] is None


def test_the_list_covers_what_the_bench_promises() -> None:
    candidates = [layout.candidate for layout in LAYOUTS.values()]
    assert len(LAYOUTS) >= 12 and {layout.network for layout in LAYOUTS.values()} == {"resnet18", "resnet50"}
    assert {candidate.layout.world_size for candidate in candidates} == {1, 2, 4}
    assert {candidate.zero for candidate in candidates} == {0, 1, 2, 3}
    assert {layout.downsample for layout in LAYOUTS.values()} >= {2, 4}
    assert any(candidate.memory.stream_strips > 1 for candidate in candidates)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_can_be_written_as_a_run(layout: MeasuredLayout) -> None:
    config, ds = applied(*loaded(layout), layout.candidate)
    assert config.model.name == layout.network and config.memory == layout.candidate.memory
    assert ds["zero_optimization"]["stage"] == layout.candidate.zero


def test_only_takes_beginnings_of_names() -> None:
    assert [layout.way for layout in chosen(["resnet18-layer/2 st"])] == ["stream 8"]
    with pytest.raises(UserError, match=r"--only 'resnet19'.*resnet18/2 plain"):
        chosen(["resnet19"])


class TestMeasuredFile:
    """`--measured`: the samples of an earlier call."""

    ONLY = ("resnet18/2 plain", "resnet18/2 lean")

    @pytest.fixture
    def result(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        def measured(layouts: list[MeasuredLayout], *_: object, repeats: int, **__: object) -> dict[str, Samples]:
            return {one.name: {"step_seconds": [4.0] * repeats, "peak_bytes": [GIB] * repeats} for one in layouts}

        monkeypatch.setattr(planner, "measure_layouts", measured)
        save(machine(), tmp_path / "hardware.toml")
        path = tmp_path / "planner.json"
        path.write_text(
            json.dumps(bench(self.cost, only=self.ONLY, repeats=2, hardware=str(tmp_path / "hardware.toml")))
        )
        monkeypatch.delattr(planner, "measure_layouts")
        return path

    @staticmethod
    def cost(problem: Problem, candidate: Candidate, machine: Hardware, ranks_per_node: int) -> Cost:
        assert problem.image == (3, 1728, 3024) and ranks_per_node == candidate.layout.world_size
        return Cost(MemoryParts(0, 0, 0, GIB, 0, GIB // 4), TimeParts(3.0, 0.0, 0.0, 0.0), candidate.global_batch)

    def test_predicts_anew_without_measuring(self, result: Path) -> None:
        hardware = str(result.with_name("hardware.toml"))
        again = bench(self.cost, only=self.ONLY, hardware=hardware, measured=result)
        assert again == json.loads(result.read_text())
        assert (again["repeats"], again["memory_error_max"], again["time_error_max"]) == (2, 0.25, 0.25)

    def test_lacks_a_layout(self, result: Path) -> None:
        hardware = str(result.with_name("hardware.toml"))
        with pytest.raises(UserError, match=r"planner\.json: has no 'resnet18/2 recompute'.*--only"):
            bench(self.cost, hardware=hardware, measured=result)

    def test_has_another_layout_of_that_name(self, result: Path) -> None:
        hardware = str(result.with_name("hardware.toml"))
        tree = json.loads(result.read_text())
        tree["layouts"][0]["measured_as"]["candidate"]["batch"] = 2
        result.write_text(json.dumps(tree))
        with pytest.raises(UserError, match="'resnet18/2 plain' was another layout then"):
            bench(self.cost, only=self.ONLY, hardware=hardware, measured=result)

    @pytest.mark.parametrize("text", ["", "[]", '{"layouts": 3}', '{"layouts": []}'])
    def test_is_none(self, result: Path, text: str) -> None:
        hardware = str(result.with_name("hardware.toml"))
        result.write_text(text)
        with pytest.raises(UserError, match="not what `lartpc-ds bench planner --json` prints"):
            bench(self.cost, only=self.ONLY, hardware=hardware, measured=result)
        with pytest.raises(UserError, match="cannot be read"):
            bench(self.cost, only=self.ONLY, hardware=hardware, measured=result.with_name("none"))
