"""A guess and a trace cost reductions alike, and agree on which candidates share a trace."""

from dataclasses import replace

import pytest

from lartpc_ds.advise.search.surrogate import PLAIN, References, Surrogate
from lartpc_ds.config import ds_config
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.problem import Candidate, Problem, trace_key
from lartpc_ds.costs.rank_cost import Costs
from lartpc_ds.costs.zero import reductions_of
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from tests.machine import machine


@pytest.mark.slow
def test_guesses_and_traces_cost_reductions_and_delays_alike() -> None:
    config = RunConfig.parse({"train": {"max_steps": 1}}, "test")
    network = lambda: build_model("resnet18", planes=3, num_classes=4, width=8)  # noqa: E731
    problem, costs, alone = Problem(config, ds_config.read("zero0_bf16"), (3, 64, 96), network), Costs(), Layout(data=4)
    plain, late = Candidate(alone), machine().model_copy(update={"delays_per_second": 10.0, "delay_seconds": 0.01})
    traced = costs(problem, plain, late, 4)
    surrogate = Surrogate(problem, References({PLAIN: traced}, {}), late, 4, lambda _: (1.0, 1.0, 1.0))
    for zero in range(4):
        for accumulate in (1, 4):
            candidate = replace(plain, zero=zero, accumulate=accumulate)
            exact, guess = costs(problem, candidate, late, 4).time, surrogate.guess(candidate).time
            assert guess.reduction == pytest.approx(exact.reduction, rel=0.02)
            busy = guess.compute / exact.compute  # the delays follow what a guess says of the computation
            assert 0 < exact.delay and guess.delay == pytest.approx(exact.delay * busy, rel=0.02)


def test_a_trace_of_as_many_micro_batches_as_stages_is_not_one_of_more() -> None:
    """With more, a forward pass follows a backward pass while gradients are there."""
    staged = Candidate(Layout(pipe=2), accumulate=2)
    keys = [trace_key(replace(staged, accumulate=number), "tiles", 4) for number in (1, 2, 3, 4)]
    assert keys[0] != keys[1] != keys[2] == keys[3]
    over_data = [trace_key(Candidate(Layout(data=data, rows=2)), "all", 2) for data in (1, 2)]
    assert over_data[0] != over_data[1]


def test_zero_3_gathers_twice_what_it_may_not_keep() -> None:
    candidate, ds = Candidate(Layout(data=2), accumulate=3, zero=3), ds_config.read("zero3_bf16")
    assert reductions_of(ds, candidate, 25_000_000) == (0, 6)
    assert reductions_of(ds, candidate, 60_000_000) == (0, 9)
