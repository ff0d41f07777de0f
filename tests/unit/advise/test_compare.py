"""`bench compare` without its processes: which variants there are, and how ours are related to the baselines."""

from collections.abc import Mapping
from typing import Any

import pytest

from lartpc_ds.advise.bench import compare
from lartpc_ds.advise.short_runs.short_run import ShortRun
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.together import RanksFailed

SMALL = ["data.downsample=32", "data.simulate.events=5"]


def test_each_of_ours_has_baselines_on_the_same_cores_that_train_as_many_events_or_are_one_process() -> None:
    rows = {variant.name: variant for variant in compare.variants(batch=3, ranks=4)}
    for variant in rows.values():
        assert bool(variant.baselines) == (variant.program == "ours"), variant.name
        for baseline in (rows[name] for name in variant.baselines):
            assert baseline.candidate == variant.candidate or baseline.name in ("plain", "ddp", "fsdp2")
            assert baseline.kind == variant.kind or baseline.name == "plain"
            assert baseline.candidate.global_batch == variant.candidate.global_batch
    assert {variant.candidate.layout.world_size for variant in rows.values()} == {1, 4}
    assert [rows[name].candidate.global_batch for name in ("plain", "ours_tiles", "ddp", "ours_pipe")] == [3, 3, 12, 24]


def test_ratios_are_per_event_and_only_of_what_was_measured() -> None:
    rows = compare.variants(batch=1, ranks=2)
    one, several = compare.Variant("a", "k", "plain", rows[0].candidate), rows[-1].candidate
    ours = compare.Variant("b", "k", "ours", several, ("a", "not measured"))
    samples = {
        "a": {"step_seconds": [1.0, 2.0, 2.0], "peak_bytes": [10.0, 20.0, 30.0]},
        "b": {"step_seconds": [4.0, 2.0, 4.0], "peak_bytes": [10.0, 10.0, 10.0]},
    }
    assert compare.ratios([one, ours], samples) == [
        {"name": "b", "baseline": "a", "time_ratio": 0.5, "memory_ratio": 0.5}
    ]
    assert compare.ratios([one, ours], {"a": samples["a"]}) == compare.ratios([ours], samples) == []


def test_a_baseline_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(run: ShortRun, variables: Mapping[str, str]) -> list[dict[str, Any]]:
        if run.program == "ddp":
            raise RanksFailed("rank failed:\nRuntimeError: no")
        return [{"step_seconds": 2.0, "peak_bytes": 7, "loss": 1.0}] * 2

    monkeypatch.setattr(ShortRun, "steps", steps)
    only = ["ddp", "deepspeed_zero0", "ours_zero0"]
    result = compare.bench("microboone-full", SMALL, only=only, ranks=2, repeats=2, steps=1)
    assert [row["name"] for row in result["variants"]] == only
    ddp, alone, ours = result["variants"]
    assert (ddp["failure"], ddp["step_seconds"], ddp["events_per_second"]) == ("RuntimeError: no", None, None)
    assert alone == {**ours, "name": "deepspeed_zero0"}
    assert (ours["ranks"], ours["global_batch"], ours["events_per_second"], ours["peak_bytes"]) == (2, 2, 1.0, 7)
    assert [(row["baseline"], row["time_ratio"]) for row in result["ratios"]] == [("deepspeed_zero0", 1.0)]
    assert result["samples"]["step_seconds"]["ours_zero0"] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "only", "named"),
    [
        ([], ["dpp"], "begins no variant's name"),
        (['ds.optimizer={type="SGD",params={lr=0.1}}'], [], "optimizer.type = 'SGD'"),
        (["train.accumulate=2"], [], "train.accumulate"),
        (["memory.lean_norm=true"], [], "memory"),
        (['train.class_weights="balanced"'], [], "train.class_weights"),
        (['train.ds_config="zero0_fp16"'], [], "zero0_fp16"),
    ],
)
def test_what_baselines_cannot_train_is_refused(settings: list[str], only: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        compare.bench("microboone-full", settings, only=only, ranks=2, repeats=1, steps=1)
