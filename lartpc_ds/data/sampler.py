"""Which events a step uses, as pure functions of the step, so that a resumed run needs no state but its step number.

Training sees an endless stream of events, epoch after epoch, each shuffled by (seed, epoch). A global batch is the next
stretch of this stream and continues across the end of an epoch, so no event is dropped and no batch is short. How a
global batch is shared among data ranks and accumulated micro-batches does not change it: one rank that accumulates two
micro-batches sees what two ranks see.

Where the cost of a step depends on the event, the events of a global batch are dealt out by their costs, so that data
ranks finish together (`deal`). The global batch stays the same set, and so does its gradient. Rejected: global batches
of events of like cost, which would bias every gradient.
"""

import heapq
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["deal", "evaluation_shard", "global_batch", "slots"]


def global_batch(step: int, global_batch_size: int, num_events: int, seed: int) -> NDArray[np.int64]:
    """The positions in [0, num_events) of the events of optimizer step `step`, counted from 0: (global_batch_size,)."""
    stream = np.arange(step * global_batch_size, (step + 1) * global_batch_size)
    epochs, within = np.divmod(stream, num_events)
    parts = [
        _shuffled(seed, epoch, num_events)[within[epochs == epoch]]
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=2)  # a batch meets at most the end of one epoch and the start of the next, unless epochs are tiny
def _shuffled(seed: int, epoch: int, num_events: int) -> NDArray[np.int64]:
    """The order of one epoch; for a million events this takes longer than reading the batch."""
    return np.random.default_rng([seed, epoch]).permutation(num_events).astype(np.int64)


def slots(part: int, data_rank: int, data_ranks: int, batch: int) -> range:
    """The places in a global batch that `data_rank` takes as micro-batch number `part` of a step."""
    first = (part * data_ranks + data_rank) * batch
    return range(first, first + batch)


@lru_cache(maxsize=2)  # all micro-batches of a step ask for the same
def deal(costs: tuple[float, ...], data_ranks: int, batch: int) -> NDArray[np.int64]:
    """The places in a global batch, with these `costs`, that each rank takes: (micro-batches, data_ranks, batch).

    Micro-batches get equal numbers of events and nearly equal costs, which depend on how many there are and not on who
    takes them; then each rank gets equally many of them, also of nearly equal sums. In each micro-step all ranks work
    on micro-batches of like cost, since some of ZeRO's stages make them wait for each other there. Only the places
    decide what comes first, so no rank and no micro-step has the bright events more often than others; where every
    rank takes one event a step, nothing moves.
    """
    micro_batches = _level(costs, len(costs) // batch)
    sums = [sum(costs[slot] for slot in slots) for slots in micro_batches]
    ranks = _level(sums, data_ranks)
    dear_first = [sorted(mine, key=lambda number: -sums[number]) for mine in ranks]
    order = [dear_first[0].index(number) for number in ranks[0]]
    return np.array([[micro_batches[mine[number]] for mine in dear_first] for number in order], np.int64)


def _level(costs: Sequence[float], groups: int) -> list[list[int]]:
    """Put numbers [0, n) into `groups` of equal size: the dearest first, each into the cheapest group with room.

    The members of a group ascend, and the groups are in the order of their first members.
    """
    room = len(costs) // groups
    assert room * groups == len(costs), (len(costs), groups)
    members: list[list[int]] = [[] for _ in range(groups)]
    open_groups = [(0.0, group) for group in range(groups)]  # a heap
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):  # equal costs stay in order
        total, group = heapq.heappop(open_groups)
        members[group].append(number)
        if len(members[group]) < room:
            heapq.heappush(open_groups, (total + costs[number], group))
    return sorted(sorted(one) for one in members)


def evaluation_shard(
    num_events: int, data_rank: int, data_ranks: int, batch: int
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """The batches (positions, valid) of one data rank; over all ranks each event is valid exactly once.

    Every rank gets the same number of batches of the same size, as collectives need. What is left over repeats the last
    event and is not valid.
    """
    num_batches = -(-num_events // (data_ranks * batch))
    starts = [(number * data_ranks + data_rank) * batch for number in range(num_batches)]
    positions = [np.arange(start, start + batch, dtype=np.int64) for start in starts]
    return [(np.minimum(part, num_events - 1), part < num_events) for part in positions]
