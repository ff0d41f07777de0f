"""Which events a step uses, as pure functions of the step, so that a resumed run needs no state but its step number.

Training sees an endless stream of events, epoch after epoch, each shuffled by (seed, epoch). A global batch is the next
stretch of this stream and continues across the end of an epoch, so no event is dropped and no batch is short. How a
global batch is shared among data ranks and accumulated micro-batches does not change it: one rank that accumulates two
micro-batches sees what two ranks see.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["evaluation_shard", "global_batch", "slots"]


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
