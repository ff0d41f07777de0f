import numpy as np
import pytest

from lartpc_ds.data.sampler import deal, evaluation_shard, global_batch, slots


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


def drawn(number: int, seed: int) -> tuple[float, ...]:
    """Costs of events, of which a few are much dearer than most."""
    return tuple(np.random.default_rng(seed).exponential(size=number).tolist())


@pytest.mark.parametrize(
    ("data_ranks", "batch", "accumulate"), [(1, 4, 3), (2, 2, 3), (3, 1, 4), (4, 3, 1), (1, 1, 12)]
)
def test_dealing_moves_events_of_a_global_batch_and_loses_none(data_ranks, batch, accumulate):
    dealt = deal(drawn(12, 1), data_ranks, batch)
    assert dealt.shape == (accumulate, data_ranks, batch)
    assert sorted(dealt.ravel().tolist()) == list(range(12))


@pytest.mark.parametrize(("data_ranks", "batch", "accumulate"), [(1, 1, 12), (4, 1, 1), (1, 5, 1)])
def test_where_dealing_cannot_help_nothing_moves(data_ranks, batch, accumulate):
    number = data_ranks * batch * accumulate
    dealt = deal(drawn(number, 2), data_ranks, batch)
    places = [slots(part, rank, data_ranks, batch) for part in range(accumulate) for rank in range(data_ranks)]
    assert dealt.ravel().tolist() == [slot for part in places for slot in part]


@pytest.mark.parametrize(("data_ranks", "batch", "accumulate"), [(2, 1, 4), (2, 4, 2), (4, 2, 4)])
def test_dealt_ranks_finish_together(data_ranks, batch, accumulate):
    number = data_ranks * batch * accumulate
    plain = np.arange(number).reshape(accumulate, data_ranks, batch)
    waits = {"dealt": [], "plain": []}
    for seed in range(200):
        costs = np.array(drawn(number, seed))
        for name, places in (("dealt", deal(tuple(costs.tolist()), data_ranks, batch)), ("plain", plain)):
            of_ranks = costs[places].sum(axis=(0, 2))
            waits[name].append(1 - of_ranks.mean() / of_ranks.max())
    assert np.mean(waits["dealt"]) < 0.4 * np.mean(waits["plain"]), "a share of the step that the mean rank waits"


def test_a_dealt_step_is_known_by_hand():
    costs = (1.0, 8.0, 2.0, 7.0, 3.0, 3.0)  # 8 with 1 and 3, 7 with 2 and 3
    assert deal(costs, 2, 1).tolist() == [[[0], [2]], [[1], [3]], [[5], [4]]]
    assert deal((5.0, 4.0, 3.0, 2.0), 2, 2).tolist() == [[[0, 3], [1, 2]]]


def test_micro_batches_do_not_depend_on_who_takes_them():
    costs = drawn(24, 4)
    alone, pair, many = (deal(costs, ranks, 3).reshape(-1, 3).tolist() for ranks in (1, 2, 4))
    assert sorted(alone) == sorted(pair) == sorted(many) == alone
    assert alone != pair, "the ranks were dealt out"


def test_no_rank_and_no_micro_step_has_the_bright_events_more_often():
    means = np.mean([np.array(drawn(8, seed))[deal(drawn(8, seed), 2, 1)[:, :, 0]] for seed in range(4000)], axis=0)
    np.testing.assert_allclose(means, 1, atol=0.08)


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
