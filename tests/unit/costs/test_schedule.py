"""The 1F1B schedule against its formula, DeepSpeed's own instructions, and small cases by hand."""

import pytest
from deepspeed.runtime.pipe import schedule as deepspeed_schedule
from hypothesis import given
from hypothesis import strategies as st

from lartpc_ds.costs.schedule import Pass, order, step_ns


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_equal_stages_have_the_known_bubble(stages: int, micro_batches: int, forward: int, backward: int) -> None:
    found = step_ns([forward] * stages, [backward] * stages, micro_batches)
    assert found == (micro_batches + stages - 1) * (forward + backward)


@given(st.integers(2, 6), st.integers(1, 9))
def test_the_order_is_that_of_deepspeed(stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        made = deepspeed_schedule.TrainSchedule(micro_batches, stages, stage)
        passes = [
            isinstance(command, deepspeed_schedule.BackwardPass)
            for commands in made.steps()
            for command in commands
            if isinstance(command, deepspeed_schedule.ForwardPass | deepspeed_schedule.BackwardPass)
        ]
        works = order(stage, stages, micro_batches)
        assert [work.backward for work in works] == passes
        for backward in (False, True):  # each kind in the order of the micro-batches
            assert [one for one in works if one.backward == backward] == [
                Pass(backward, number) for number in range(micro_batches)
            ]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.integers(1, 8))
def test_no_faster_than_its_slowest_stage_and_no_slower_than_no_pipeline(
    times: list[tuple[int, int]], micro_batches: int
) -> None:
    forward, backward = ([pair[side] for pair in times] for side in (0, 1))
    found = step_ns(forward, backward, micro_batches)
    busiest = max(map(sum, times))
    assert max(micro_batches * busiest, sum(map(sum, times))) <= found <= micro_batches * sum(map(sum, times))


@pytest.mark.parametrize(("micro_batches", "expected"), [(1, 9), (2, 9 + 6)])
def test_a_slow_last_stage(micro_batches: int, expected: int) -> None:
    assert step_ns([1, 2], [2, 4], micro_batches) == expected
