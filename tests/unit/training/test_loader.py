import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist

from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.augment import Augmentation
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing
from lartpc_ds.data.sampler import global_batch
from lartpc_ds.data.source import EventSource
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.layout import Layout
from lartpc_ds.training.loader import MicroBatch, evaluation_batches, step_positions, training_steps
from tests.small_runs import random_event, write_events

EVENTS = 11
SHAPE = (33, 49)


@pytest.fixture(scope="module")
def event_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("loader") / "events.h5", EVENTS)


def dataset(path: Path, *, sparse: bool = False) -> EventDataset:
    positions = np.arange(EVENTS)
    source = EventSource(open_files([str(path)]), Preprocessing(SHAPE), positions)  # the label is the event
    return EventDataset(source, positions, sparse=sparse)


def config(*, batch: int = 2, accumulate: int = 1, workers: int = 0, seed: int = 5) -> RunConfig:
    data = {"batch": batch, "workers": workers, "seed": seed}
    return RunConfig.parse({"data": data, "train": {"max_steps": 9, "accumulate": accumulate}}, "test")


def groups(rank: int = 0, data: int = 1) -> Groups:
    none = cast(dist.ProcessGroup, None)  # the loader needs no collective
    return Groups(Layout(data=data), rank, 0, none, none, none, none, none)


def read(steps: Iterator[Iterator[MicroBatch]]) -> list[list[MicroBatch]]:
    return [list(micro_batches) for micro_batches in steps]


def labels(steps: list[list[MicroBatch]]) -> list[list[int]]:
    return [torch.cat([part for _, part in step]).tolist() for step in steps]


def same(one: list[list[MicroBatch]], other: list[list[MicroBatch]]) -> bool:
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    return all(
        torch.equal(a.to_dense(), b.to_dense()) for first, second in pairs for a, b in zip(first, second, strict=True)
    )


def test_a_step_holds_its_micro_batches(event_file: Path) -> None:
    steps = read(training_steps(dataset(event_file), config(accumulate=3), groups(), 0, 4))
    assert [len(step) for step in steps] == [3] * 4
    for images, part in itertools.chain(*steps):
        assert images.shape == (2, 2, *SHAPE) and images.dtype == torch.float32
        assert part.shape == (2,) and part.dtype == torch.int64
    assert labels(steps) == [global_batch(step, 6, EVENTS, 5).tolist() for step in range(4)]


@pytest.mark.parametrize("workers", [0, 1])
def test_images_come_channels_last_and_otherwise_as_they_are(event_file: Path, workers: int) -> None:
    events = dataset(event_file)
    for step in training_steps(events, config(workers=workers), groups(), 0, 2):
        for images, part in step:
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(images, torch.stack([events[position][0] for position in part.tolist()]))


def test_an_image_comes_with_its_own_label(event_file: Path) -> None:
    for step in training_steps(dataset(event_file), config(), groups(), 0, 3):
        for images, part in step:
            for image, label in zip(images, part.tolist(), strict=True):
                expected = sum(float(plane.values.sum()) for plane in random_event(label).planes)
                assert float(image.sum()) == pytest.approx(expected, rel=1e-5)


def test_one_rank_that_accumulates_sees_what_two_ranks_see(event_file: Path) -> None:
    alone = labels(read(training_steps(dataset(event_file), config(accumulate=2), groups(), 0, 6)))
    pair = [labels(read(training_steps(dataset(event_file), config(), groups(rank, 2), 0, 6))) for rank in range(2)]
    assert alone == [one + other for one, other in zip(*pair, strict=True)]


COSTS = np.where(np.arange(EVENTS) % 4, 0.1, 0.9)
"""The predicted costs of a step on the events, of which every fourth is dear."""


def test_dealing_keeps_every_global_batch_and_levels_the_ranks(event_file: Path) -> None:
    run = config(batch=1, accumulate=4)
    dealt, plain = (
        np.array(
            [labels(read(training_steps(dataset(event_file), run, groups(rank, 2), 0, 20, costs))) for rank in range(2)]
        )
        for costs in (COSTS, None)
    )
    for step in range(20):
        assert sorted(dealt[:, step].ravel()) == sorted(global_batch(step, 8, EVENTS, 5))
    spread = [np.abs(np.diff(COSTS[one].sum(axis=2), axis=0)).mean() for one in (dealt, plain)]
    assert spread[0] < 0.5 * spread[1]
    positions = [step_positions(3, EVENTS, run, groups(rank, 2), COSTS) for rank in range(2)]
    assert positions == dealt[:, 3].tolist(), "the events that are blamed are those that were taken"
    tail = labels(read(training_steps(dataset(event_file), run, groups(1, 2), 13, 20, COSTS)))
    assert tail == dealt[1, 13:].tolist(), "a resumed run deals alike"


def test_a_dealt_event_is_augmented_as_its_place_in_the_global_batch_says(event_file: Path) -> None:
    events = dataset(event_file)
    events.augmentation = Augmentation((True, True), (5, 9), 3)
    steps = [
        read(training_steps(events, config(batch=2, accumulate=2), groups(rank, 2), 0, 3, costs))
        for costs in (COSTS, None)
        for rank in range(2)
    ]
    images = [
        {
            (step, int(label)): image
            for step in range(3)
            for part in one[step]
            for image, label in zip(*part, strict=True)
        }
        for one in steps
    ]
    dealt, plain = images[0] | images[1], images[2] | images[3]
    assert dealt.keys() == plain.keys() and images[0].keys() != images[2].keys()
    assert all(torch.equal(image, plain[key]) for key, image in dealt.items())


def test_a_resumed_stream_is_the_tail_of_the_whole(event_file: Path) -> None:
    events, run = dataset(event_file), config(accumulate=2)
    whole = read(training_steps(events, run, groups(), 0, 8))
    assert same(read(training_steps(events, run, groups(), 5, 8)), whole[5:])
    assert not same(whole[:3], whole[5:]), "or the test would show nothing"


def test_the_seed_orders_the_events(event_file: Path) -> None:
    one, other = (
        labels(read(training_steps(dataset(event_file), config(seed=seed), groups(), 0, 5))) for seed in (1, 2)
    )
    assert one != other


@pytest.mark.slow
def test_augmented_events_are_the_same_in_any_layout_and_after_a_resume(event_file: Path) -> None:
    plain, events = dataset(event_file), dataset(event_file)
    events.augmentation = Augmentation((True, True), (5, 9), 3)
    alone = read(training_steps(events, config(accumulate=2), groups(), 0, 6))
    assert not same(alone, read(training_steps(plain, config(accumulate=2), groups(), 0, 6)))
    assert same(read(training_steps(events, config(accumulate=2), groups(), 4, 6)), alone[4:])
    assert same(read(training_steps(events, config(accumulate=2, workers=1), groups(), 4, 6)), alone[4:])
    pair = [read(training_steps(events, config(), groups(rank, 2), 0, 6)) for rank in range(2)]
    assert same([one + other for one, other in zip(*pair, strict=True)], alone)
    tile = EventDataset(events.source, range(EVENTS), (10, 30), (0, 20), augmentation=events.augmentation)
    for whole, part in zip(alone, training_steps(tile, config(accumulate=2), groups(), 0, 6), strict=True):
        for (images, _), (tiles, _) in zip(whole, part, strict=True):
            assert torch.equal(images[..., 10:30, 0:20], tiles)
    (first, *_), (unchanged, *_) = (evaluation_batches(one, config(), groups()) for one in (events, plain))
    assert torch.equal(first[0], unchanged[0]), "evaluation takes events as they are"


def test_reading_leaves_the_random_state_alone(event_file: Path) -> None:
    before = torch.random.get_rng_state()
    read(training_steps(dataset(event_file), config(), groups(), 0, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("ranks", "batch"), [(1, 4), (2, 2), (3, 4)])
def test_evaluation_takes_every_event_once(event_file: Path, ranks: int, batch: int) -> None:
    counted, batches = [], []
    for rank in range(ranks):
        found = list(evaluation_batches(dataset(event_file), config(batch=batch), groups(rank, ranks)))
        batches.append(len(found))
        for images, _, positions, valid in found:
            assert images.shape[0] == len(positions) == len(valid) == batch
            counted += positions[valid].tolist()
            first = random_event(int(positions[0])).planes[0]
            assert float(images[0, 0].sum()) == pytest.approx(float(first.values.sum()), rel=1e-5)
    assert sorted(counted) == list(range(EVENTS))
    assert len(set(batches)) == 1, "collectives need as many on every rank"


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_reader_processes_change_nothing(event_file: Path, sparse: bool) -> None:
    before = torch.random.get_rng_state()
    data = dataset(event_file, sparse=sparse)
    alone, helped = (
        read(training_steps(data, config(accumulate=2, workers=workers), groups(), 1, 4)) for workers in (0, 2)
    )
    assert all(images.is_sparse == sparse for step in alone for images, _ in step)
    assert same(alone, helped)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_event_is_named_alike_from_a_reader_process(tmp_path: Path, workers: int) -> None:
    path = write_events(tmp_path / "bad.h5", EVENTS)
    with h5py.File(path, "r+") as file:
        voxels = file["Data/sparse2d_wire_group/voxels"]
        row = voxels[0]
        row["value"] = np.nan
        voxels[0] = row
    run = config(batch=EVENTS, workers=workers)
    with pytest.raises(UserError) as caught:
        read(training_steps(dataset(path), run, groups(), 0, 1))
    message = str(caught.value)
    assert message.startswith(str(path)) and "event 0" in message and "nan" in message
    assert "Traceback" not in message and "worker" not in message and "\n" not in message
