"""How long a step of a pipeline takes: the 1F1B schedule of DeepSpeed's `TrainSchedule`, played through.

For equal stages it is (M + S - 1) times a stage; for others there is no such formula, because a slow stage's bubble
depends on where it stands. Sending a map is taken to cost nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Work", "order", "step_ns"]


class Work(NamedTuple):
    """One pass of one micro-batch."""

    backward: bool
    micro_batch: int


def order(stage: int, stages: int, micro_batches: int) -> list[Work]:
    """What a stage does in a step: it fills up, then one forward follows each backward pass."""
    ahead = min(stages - stage, micro_batches)
    works = [Work(False, number) for number in range(ahead)]
    for number in range(micro_batches):
        works.append(Work(True, number))
        if number + ahead < micro_batches:
            works.append(Work(False, number + ahead))
    return works


def step_ns(forward_ns: Sequence[int], backward_ns: Sequence[int], micro_batches: int) -> int:
    """From the start of the first forward pass to the end of the last backward pass of a step."""
    stages = len(forward_ns)
    waiting = [order(stage, stages, micro_batches) for stage in range(stages)]
    free_at = [0] * stages
    done: dict[tuple[int, Work], int] = {}
    while any(waiting):
        for stage, works in enumerate(waiting):
            while works:
                work = works[0]
                source = stage + 1 if work.backward else stage - 1
                ready = 0 if source in (-1, stages) else done.get((source, work))
                if ready is None:
                    break
                length = (backward_ns if work.backward else forward_ns)[stage]
                free_at[stage] = done[stage, work] = max(free_at[stage], ready) + length
                works.pop(0)
    return max(free_at)
