import numpy as np
import pytest

from lartpc_ds.data.sampler import evaluation_shard, global_batch, slots


def stream(steps: int, size: int, num_events: int, seed: int) -> np.ndarray:
    return np.concatenate([global_batch(step, size, num_events, seed) for step in range(steps)])


@pytest.mark.parametrize("size", [1, 3, 7, 10, 25])
def test_batches_run_through_shuffled_epochs(size):
    events = stream(70, size, 10, seed=3)
    num_epochs = len(events) // 10
    epochs = events[: num_epochs * 10].reshape(num_epochs, 10)
    for number, epoch in enumerate(epochs):
        np.testing.assert_array_equal(epoch, np.random.default_rng([3, number]).permutation(10))
    assert events.dtype == np.int64 and len(events) == 70 * size


def test_seed_changes_the_order():
    assert global_batch(0, 50, 50, seed=1).tolist() != global_batch(0, 50, 50, seed=2).tolist()
    assert global_batch(0, 50, 50, seed=1).tolist() != global_batch(1, 50, 50, seed=1).tolist()


@pytest.mark.parametrize(
    ("data_ranks", "batch", "accumulate"), [(1, 4, 3), (2, 2, 3), (3, 1, 4), (4, 3, 1), (1, 1, 12)]
)
def test_every_layout_sees_the_same_global_batch(data_ranks, batch, accumulate):
    parts = [slots(index, rank, data_ranks, batch) for index in range(accumulate) for rank in range(data_ranks)]
    assert all(len(part) == batch for part in parts)
    assert [slot for part in parts for slot in part] == list(range(12))


@pytest.mark.parametrize("num_events", [1, 2, 11, 12, 13, 24, 25])
@pytest.mark.parametrize(("data_ranks", "batch"), [(1, 1), (1, 5), (2, 3), (3, 4)])
def test_evaluation_counts_each_event_once(num_events, data_ranks, batch):
    shards = [evaluation_shard(num_events, rank, data_ranks, batch) for rank in range(data_ranks)]
    assert len({len(shard) for shard in shards}) == 1
    counted = []
    for positions, valid in (pair for shard in shards for pair in shard):
        assert positions.shape == valid.shape == (batch,)
        assert positions.min() >= 0 and positions.max() < num_events
        counted.extend(positions[valid].tolist())
    assert sorted(counted) == list(range(num_events))
