"""How long a step of a pipeline takes: the 1F1B schedule of DeepSpeed's `TrainSchedule`, played through.

For equal stages it is (M + S - 1) times a stage; for others there is no such formula, because a slow stage's bubble
depends on where it stands. Sending a map is taken to cost nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Pass", "order", "step_ns"]


class Pass(NamedTuple):
    """The forward or the backward pass of one micro-batch."""

    backward: bool
    micro_batch: int


def order(stage: int, stages: int, micro_batches: int) -> list[Pass]:
    """The passes of a stage in a step: it fills up, and then a forward pass follows each backward pass."""
    ahead = min(stages - stage, micro_batches)
    passes = [Pass(False, number) for number in range(ahead)]
    for number in range(micro_batches):
        passes.append(Pass(True, number))
        if number + ahead < micro_batches:
            passes.append(Pass(False, number + ahead))
    return passes


def step_ns(forward_ns: Sequence[int], backward_ns: Sequence[int], micro_batches: int) -> int:
    """The time from the start of the first forward pass to the end of the last backward pass of a step."""
    stages = len(forward_ns)
    waiting = [order(stage, stages, micro_batches) for stage in range(stages)]
    free_at = [0] * stages
    done: dict[tuple[int, Pass], int] = {}
    while any(waiting):
        for stage, passes in enumerate(waiting):
            while passes:
                first = passes[0]
                source = stage + 1 if first.backward else stage - 1
                ready = 0 if source in (-1, stages) else done.get((source, first))
                if ready is None:
                    break
                length = (backward_ns if first.backward else forward_ns)[stage]
                free_at[stage] = done[stage, first] = max(free_at[stage], ready) + length
                passes.pop(0)
    return max(free_at)
