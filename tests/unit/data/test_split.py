from collections import Counter

import numpy as np
import pytest

from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.event import EventId
from lartpc_ds.data.split import assign
from lartpc_ds.errors import UserError

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}
KNOWN = [
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "validation",
    "test",
    "train",
    "train",
    "validation",
]


def events(number: int, file: str = "a.h5") -> list[EventId]:
    return [EventId(file, index, 1, 0, index) for index in range(number)]


def without_numbers(number: int, file: str) -> list[EventId]:
    return [EventId(file, index, -1, -1, -1) for index in range(number)]


def test_known_answer():
    # fixed for ever: a changed hash would move events between training and test of published runs
    assert assign(events(12), SHARES, seed=7).tolist() == KNOWN


def test_shares_are_met():
    counts = Counter(assign(events(20_000), SHARES, seed=1).tolist())
    for name, share in SHARES.items():
        # five standard deviations of a binomial
        assert abs(counts[name] - 20_000 * share) < 5 * np.sqrt(20_000 * share * (1 - share))


def test_split_depends_on_identity_alone():
    ids = events(300)
    split = dict(zip(ids, assign(ids, SHARES, seed=1), strict=True))
    fewer = ids[::-3]
    assert assign(fewer, SHARES, seed=1).tolist() == [split[event] for event in fewer]
    moved = [EventId("other/b.h5", 7 + event.index, event.run, event.subrun, event.event) for event in ids]
    assert assign(moved, SHARES, seed=1).tolist() == list(split.values())
    assert assign(ids, SHARES, seed=2).tolist() != list(split.values())


def test_moving_a_folder_moves_no_event_without_numbers():
    here, there = (assign(without_numbers(200, file), SHARES, 1) for file in ("here/a.h5", "/there/a.h5"))
    assert here.tolist() == there.tolist()
    assert here.tolist() != assign(without_numbers(200, "here/b.h5"), SHARES, 1).tolist()


def test_share_zero_gets_nothing():
    assert set(assign(events(50), {"train": 1.0, "validation": 0.0, "test": 0.0}, seed=3)) == {"train"}
    assert set(assign(events(50), {"test": 1.0}, seed=3)) == {"test"}
    assert set(assign(events(50), {"train": 0.5, "validation": 0.0, "test": 0.5}, seed=3)) == {"train", "test"}


def test_empty_split():
    with pytest.raises(UserError, match=r"data\.split\.test = 0\.001 got none of 5 events"):
        assign(events(5), {"train": 0.999, "test": 0.001}, seed=0)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"train": 0.5, "test": 0.4, "validation": 0.0}, r"data\.split: .* must be 1, they are 0\.9"),
        ({"train": 1.0, "test": -0.5, "validation": 0.5}, r"data\.split\.test: .*given: -0\.5"),
        ({"train": 0.5, "dev": 0.5}, r"data\.split\.dev: unknown key"),
        ({"train": float("nan")}, r"data\.split\.train"),
    ],
)
def test_wrong_shares_are_refused_by_the_configuration(shares, message):
    with pytest.raises(UserError, match=message):
        RunConfig.parse({"data": {"split": shares}, "train": {"max_steps": 1}}, "my.toml")
