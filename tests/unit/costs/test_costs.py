"""A trace that is used again gives what a trace of its own would."""

from dataclasses import replace

import pytest
from torch import nn

from lartpc_ds.config import ds_config
from lartpc_ds.config.run import MemoryConfig, RunConfig
from lartpc_ds.costs import rank_cost
from lartpc_ds.costs.problem import Candidate, Problem
from lartpc_ds.costs.rank_cost import Costs, cost
from lartpc_ds.layout import Layout
from tests.machine import machine

pytestmark = pytest.mark.slow

LEAN = MemoryConfig(lean_norm=True)
START = Candidate(Layout(data=2, rows=2), memory=LEAN)
ALIKE = [
    replace(START, zero=2),
    replace(START, zero=1, offload=True),
    replace(START, accumulate=4),
    replace(START, accumulate=8, zero=3),
]
OTHER = [replace(START, batch=2), replace(START, memory=MemoryConfig()), replace(START, layout=Layout(data=2, cols=2))]


def network() -> nn.Module:
    """Small, because every candidate is traced twice."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, block, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))


def test_candidates_that_differ_in_states_share_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.parse({"train": {"max_steps": 1}}, "test")
    problem = Problem(config, ds_config.read("zero0_bf16"), (3, 48, 64), network)
    wanted = [cost(problem, one, machine(), 4) for one in (START, *ALIKE, *OTHER)]
    traces = []
    real = rank_cost.trace_stages
    monkeypatch.setattr(rank_cost, "trace_stages", lambda *arguments: traces.append(1) or real(*arguments))
    costs = Costs()
    assert [costs(problem, one, machine(), 4) for one in (START, *ALIKE, *OTHER)] == wanted
    assert len(traces) == 2 + len(OTHER)  # with accumulation the gradients of before are there, too
