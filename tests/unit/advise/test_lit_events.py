"""A plan of a run that computes only what is lit: where its events come from, and what it says of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lartpc_ds.advise.search.candidates import choices
from lartpc_ds.advise.search.lit_events import parse_shares, tracks, with_lit_events
from lartpc_ds.advise.search.planner import plan, problem_of
from lartpc_ds.advise.search.search import search
from lartpc_ds.advise.tune.tune import tune
from lartpc_ds.config import recipes
from lartpc_ds.costs.problem import Problem
from lartpc_ds.costs.rank_cost import Costs
from lartpc_ds.data.lit_shares import Cells
from lartpc_ds.errors import UserError
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.layout import Layout
from tests.machine import machine
from tests.small_runs import write_events, write_run_toml

QUIET = Console(quiet=True)
SMALL = ("data.downsample=[2,4]", "model.width=8", "data.batch=1")
LIT = (*SMALL, "memory.lit_block=auto")


def problem(*overrides: str, told: str | None = None) -> Problem:
    config, ds = recipes.load("quickstart", overrides)
    return with_lit_events(problem_of(config, ds), told, QUIET)


@pytest.mark.parametrize("told", ["0", "1.5", "-0.1", "abc", "", "0.2,0.1", "0.1,0.2,0.3", "0.1,1.1", "nan"])
def test_a_share_that_is_none_is_refused_with_what_would_be_one(told: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_shares(told)
    assert str(refused.value).startswith(f"--lit-share '{told}': must be the share")
    assert "above 0 and at most 1" in str(refused.value) and "such as 0.02 or 0.02,0.06" in str(refused.value)


def test_one_share_stands_for_all_events() -> None:
    assert parse_shares("0.02") == (0.02, 0.02) and parse_shares("0.02,1") == (0.02, 1.0)


def test_tracks_light_the_share_that_they_are_asked_for() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 1, 1))
    lit = plan_lit(network, 32, "never", (3, 500, 900))
    patches = 16 * 29
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
    assert 0 < lit.median.sum() < lit.brightest.sum()
    (tmp_path / "events.h5").unlink()
    named = config.model_copy(update={"data": config.data.model_copy(update={"detector": "argoneut"})})
    with pytest.raises(UserError, match=r"events\.h5.*; to plan without these events, say --lit-share"):
        with_lit_events(problem_of(named, ds), None, QUIET)


def test_a_run_with_lit_blocks_has_them_on_whole_events_only() -> None:
    offered = choices(problem(*LIT, told="0.05"), machine(), 4, 4)
    assert {bool(one.memory.lit_block) for one in offered.candidates} == {True, False}
    for one in offered.candidates:
        assert bool(one.memory.lit_block) == (one.layout.tiles == one.layout.pipe == 1)
        assert one.memory.stream_strips == 1 and (not one.memory.lit_block or one.batch <= 4)
    assert any("neither goes with memory.lit_block" in told for told in offered.refused)


def test_a_share_offers_lit_as_one_more_lever() -> None:
    without, offered = (choices(problem(*SMALL, told=told), machine(), 1, 4).candidates for told in (None, "0.05"))
    assert not any(one.memory.lit_block for one in without)
    assert [one for one in offered if not one.memory.lit_block] == without
    assert {one.memory.lit_block for one in offered} == {0, "auto"}


@pytest.mark.slow
def test_a_brightest_event_that_does_not_fit_is_not_recommended() -> None:
    asked, costs = problem(*LIT, "memory.lit_until=never", told="0.02,0.9"), Costs()
    assert asked.lit is not None
    typical = replace(asked, lit=replace(asked.lit, brightest=asked.lit.median))
    low, high = (
        min(
            cost(one, candidate, machine(), 1).memory.total
            for candidate in choices(one, machine(), 1, 1).candidates
            if candidate.batch == 1 and candidate.zero == 0
        )
        for one, cost in ((typical, Costs()), (asked, costs))
    )
    assert low < high
    between = (low + high) // 2
    assert search(typical, machine(), 1, between, 1, cost=Costs()).recommended is not None
    found = search(asked, machine(), 1, between, 1, cost=costs, budget_seconds=1)
    assert found.recommended is None and found.rows[0].cost.memory.total == high


def planned(capsys: pytest.CaptureFixture[str], *overrides: str, **options: Any) -> dict[str, Any]:
    plan("quickstart", QUIET, devices=2, overrides=overrides, budget_seconds=1, as_json=True, **options)
    tree: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return tree


@pytest.mark.slow
def test_without_files_events_are_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    tree = planned(capsys, *LIT)
    events, best = tree["lit_events"], tree["recommended"]
    assert events["origin"] == "20 simulated events"
    assert 0 < events["median_share"] < events["brightest_share"] < 1
    assert best["memory"]["lit_block"] == "auto"
    assert best["step_seconds"] < best["brightest_step_seconds"]


@pytest.mark.slow
def test_the_report_says_both_times_and_whose_memory_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200, record=True)
    plan("quickstart", console, devices=2, overrides=LIT, budget_seconds=1, lit_share="0.02,0.2", hardware="cpu")
    text = console.export_text()
    assert "s on the brightest" in text and "on median events and" in text
    assert "of events of straight tracks (--lit-share 0.02,0.2), which light 2" in text
    assert "the memory is that of the brightest" in text


def test_tuning_refuses_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"memory\.lit_block = 'auto': tune looks at no event.*set memory\.lit_block"):
        tune("quickstart", QUIET, steps=1, overrides=LIT, out=tmp_path / "tuned", devices=1)


def test_a_network_without_blocks_cannot_be_lit() -> None:
    asked = problem(*SMALL)
    alone = replace(asked, make_model=lambda: torch.nn.Conv2d(3, 2, 3))
    with pytest.raises(UserError):
        with_lit_events(alone, "0.1", QUIET)
    assert asked.lit is None and Layout().tiles == 1
