"""A plan of a run that computes only what is lit: where its events come from, and what it says of them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from torch import nn

from lartpc_ds.advise.search.candidates import choices
from lartpc_ds.advise.search.lit_events import parse_shares, tracks, with_lit_events
from lartpc_ds.advise.search.plan_report import tree_of
from lartpc_ds.advise.search.planner import plan, problem_of
from lartpc_ds.advise.search.search import Plan, search
from lartpc_ds.advise.tune.tune import tune
from lartpc_ds.config import recipes
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, Problem, TimeParts
from lartpc_ds.costs.rank_cost import Costs
from lartpc_ds.data.lit_shares import Cells
from lartpc_ds.errors import UserError
from tests.machine import GIB, machine
from tests.small_runs import write_events, write_run_toml

QUIET = Console(quiet=True)
LIT = "memory.lit_block=auto"
IMAGE = (3, 500, 900)


def network() -> nn.Module:
    """Blocks without many layers, of which a plan on patches is quickly made."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, 4))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), head)


def problem(*overrides: str, told: str | None = None) -> Problem:
    config, ds = recipes.load("quickstart", overrides)
    return with_lit_events(Problem(config, ds, IMAGE, network), told, QUIET)


@pytest.mark.parametrize("told", ["0", "1.5", "-0.1", "abc", "", "0.2,0.1", "0.1,0.2,0.3", "0.1,1.1", "nan"])
def test_a_share_that_is_none_is_refused_with_what_would_be_one(told: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_shares(told)
    assert str(refused.value).startswith(f"--lit-share '{told}': must be the share")
    assert "above 0 and at most 1" in str(refused.value) and "such as 0.02 or 0.02,0.06" in str(refused.value)


def test_one_share_stands_for_all_events() -> None:
    assert parse_shares("0.02") == (0.02, 0.02) and parse_shares("0.02,1") == (0.02, 1.0)


def test_tracks_light_the_share_that_they_are_asked_for() -> None:
    asked = problem(LIT, told="0.1").lit
    assert asked is not None
    lit, patches = asked.plan, 16 * 29
    before = np.zeros((1, 500, 900), np.bool_)
    for share in (1e-6, 0.02, 0.3, 1.0):
        pixels = tracks(lit, share)
        assert lit.cut.shares(Cells.of_bits(pixels))[0] == max(1, round(share * patches)) / patches
        assert pixels[before].all(), "a brighter event has the tracks of a darker one"
        before = pixels


def test_events_of_files_are_looked_at(tmp_path: Path) -> None:
    toml = write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 40))
    config, ds = recipes.load(str(toml), ["memory.lit_block=32"])
    lit = with_lit_events(problem_of(config, ds), None, QUIET).lit
    assert lit is not None and lit.origin == "40 events of the run"
    median, brightest = (lit.plan.cost(lit.plan.shares(pixels)) for pixels in (lit.median, lit.brightest))
    assert 0 < median <= brightest and lit.median.shape == lit.brightest.shape == (1, 33, 49)
    (tmp_path / "events.h5").unlink()
    named = config.model_copy(update={"data": config.data.model_copy(update={"detector": "argoneut"})})
    with pytest.raises(UserError, match=r"events\.h5.*; to plan without looking at events, say --lit-share"):
        with_lit_events(problem_of(named, ds), None, QUIET)


def test_a_run_with_lit_blocks_has_them_on_whole_events_only() -> None:
    offered = choices(problem(LIT, "data.batch=8", told="0.05"), machine(), 4, 4)
    assert {bool(one.memory.lit_block) for one in offered.candidates} == {True, False}
    for one in offered.candidates:
        assert bool(one.memory.lit_block) == (one.layout.tiles == one.layout.pipe == 1)
        assert one.memory.stream_strips == 1 and (not one.memory.lit_block or one.batch in (1, 2, 4, 8))
    assert any("neither goes with memory.lit_block" in told for told in offered.refused)


def test_a_share_offers_lit_as_one_more_lever() -> None:
    without, offered = (choices(problem(told=told), machine(), 1, 4).candidates for told in (None, "0.05"))
    assert not any(one.memory.lit_block for one in without)
    assert [one for one in offered if not one.memory.lit_block] == without
    assert {one.memory.lit_block for one in offered} == {0, "auto"}


@pytest.mark.slow
def test_a_brightest_event_that_does_not_fit_is_not_recommended() -> None:
    asked = problem(LIT, "memory.lit_until=never", told="0.02,0.9")
    assert asked.lit is not None
    typical = replace(asked, lit=replace(asked.lit, brightest=asked.lit.median))

    def planned(one: Problem, memory_bytes: int) -> Plan:
        return search(one, machine(), 1, memory_bytes, 1, cost=Costs())

    least = [min(row.cost.memory.total for row in planned(one, 1 << 34).rows) for one in (typical, asked)]
    between = sum(least) // 2
    assert least[0] < between < least[1]
    assert planned(typical, between).recommended is not None
    found = planned(asked, between)
    assert found.recommended is None and found.rows and not any(row.fits for row in found.rows)


def cheap(problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> Cost:
    """Lit steps take a half of the time of others, and twice as long on the brightest event."""
    lit = bool(candidate.memory.lit_block)
    time = TimeParts(0.5 if lit else 1.0, 0, 0, 0)
    return Cost(MemoryParts(GIB, 0, 0, GIB, 0, 0), time, candidate.global_batch, 1.0 if lit else None)


def test_without_files_events_are_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [LIT, "data.downsample=[4,4]", "model.width=8", "data.isolated=3"]
    plan("microboone-full", Console(width=200), devices=2, overrides=overrides, cost=cheap)
    text = capsys.readouterr().out
    assert "s on the brightest" in text and "a step takes 0.5 s on median events and 1 s on the brightest" in text
    assert re.search(r"the median and on the brightest of 20 simulated events, which light .* % and .* % of the", text)
    assert "the memory is that of the brightest" in text


def test_programs_are_told_both_times_and_the_shares() -> None:
    asked = problem(LIT, told="0.02,0.2")
    tree = tree_of(search(asked, machine(), 1, 1 << 34, 1, cost=Costs()), machine(), asked, 1)
    events, best = tree["lit_events"], tree["recommended"]
    assert events["origin"] == "events of straight tracks (--lit-share 0.02,0.2)" and events["patch"] == (32, 32)
    assert (events["median_share"], events["brightest_share"]) == pytest.approx((0.02, 0.2), abs=1e-3)
    assert best["memory"]["lit_block"] == "auto"
    assert best["step_seconds"] < best["brightest_step_seconds"]


def test_tuning_refuses_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"memory\.lit_block = 'auto': tune looks at no event.*set memory\.lit_block"):
        tune("quickstart", QUIET, steps=1, overrides=[LIT], out=tmp_path / "tuned", devices=1)


def test_a_network_without_blocks_is_refused() -> None:
    alone = replace(problem(), make_model=lambda: nn.Conv2d(3, 2, 3))
    with pytest.raises(UserError, match="blocks"):
        with_lit_events(alone, "0.1", QUIET)
