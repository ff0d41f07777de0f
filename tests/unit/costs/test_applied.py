"""A candidate's configurations are valid, and say what the candidate says."""

from itertools import product
from typing import Any

import pytest

from lartpc_ds.config import ds_config
from lartpc_ds.config.run import MemoryConfig, RunConfig
from lartpc_ds.costs.applied import applied, as_written
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.layout import Layout

CONFIG = RunConfig.parse({"data": {"batch": 3, "files": ["a.h5"]}, "train": {"max_steps": 5, "seed": 4}}, "test")


def names() -> list[str]:
    return [f"zero{stage}_{kind}" for stage, kind in product((0, 1, 2, 3, "2_offload", "3_offload"), ("bf16", "fp32"))]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("zero", [(0, False), (1, False), (1, True), (2, True), (3, False), (3, True)])
def test_any_stage_can_be_made_of_any_file(name: str, zero: tuple[int, bool]) -> None:
    ds = ds_config.read(name)
    candidate = Candidate(Layout(data=2, rows=2), 2, 4, *zero, MemoryConfig(lean_norm=True), "never")
    config, made = applied(CONFIG, ds, candidate)
    ds_config.check(made, "test")
    assert as_written(config, made, candidate.layout) == candidate
    assert (config.data.files, config.train.seed, made["optimizer"]["type"]) == (("a.h5",), 4, "AdamW")


def differences(one: Any, other: Any, path: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return {found for key in keys for found in differences(one.get(key), other.get(key), f"{path}.{key}")}
    return set() if one == other else {path.removeprefix(".")}


@pytest.mark.parametrize("start", names())
@pytest.mark.parametrize("goal", names())
def test_a_changed_file_is_the_shipped_file_of_that_stage(start: str, goal: str) -> None:
    wanted = ds_config.read(goal)
    candidate = as_written(CONFIG, wanted, Layout())
    _, made = applied(CONFIG, ds_config.read(start), candidate)
    precision = {"torch_autocast.enabled", "torch_autocast.dtype"}
    left_over = {path for path in differences(made, wanted) if not path.startswith("zero_optimization.s")}
    assert left_over <= precision


def test_named_cuts_are_written_out() -> None:
    config, _ = applied(CONFIG, ds_config.read("zero1_bf16"), Candidate(Layout(pipe=2), cuts=("layer3_0",)))
    assert config.layout.cuts == ("layer3_0",)
