"""From the sampler's positions to batches of tensors, in this process or in reader processes.

torch's DataLoader does the work; the batches come from pure functions of the step, so a resumed run starts its loader
at its step and needs no saved iterator.
"""

import itertools
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, default_collate

from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.augment import Place
from lartpc_ds.data.dataset import EventDataset, Item
from lartpc_ds.data.processes import end_with_parent
from lartpc_ds.data.sampler import evaluation_shard, micro_batch
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.training.readers import reader_context

__all__ = ["evaluation_batches", "step_positions", "training_steps"]

MicroBatch = tuple[torch.Tensor, torch.Tensor]


def training_steps(
    dataset: EventDataset, config: RunConfig, groups: Groups, first_step: int, last_step: int
) -> Iterator[Iterator[MicroBatch]]:
    """For each optimizer step in [first_step, last_step) this rank's micro-batches (images, targets), read lazily."""
    accumulate, batch, layout = config.train.accumulate, config.data.batch, groups.layout

    def items(step: int, part: int) -> list[Item]:
        first = (part * layout.data + groups.data_rank) * batch
        positions = _micro_batch(step, part, len(dataset), config, groups)
        return [(position, Place(step, first + k)) for k, position in enumerate(positions)]

    batches = _read(
        dataset,
        (items(step, part) for step in range(first_step, last_step) for part in range(accumulate)),
        config.data.workers,
    )
    for _ in range(first_step, last_step):
        # map keeps no batch; a generator's frame would hold the host's images through the whole step
        yield map(itemgetter(0, 1), itertools.islice(batches, accumulate))


def _micro_batch(step: int, part: int, num_events: int, config: RunConfig, groups: Groups) -> list[int]:
    positions = micro_batch(
        step,
        part,
        groups.data_rank,
        data_ranks=groups.layout.data,
        batch=config.data.batch,
        accumulate=config.train.accumulate,
        num_events=num_events,
        seed=config.data.seed,
    )
    return [int(position) for position in positions]


def step_positions(step: int, num_events: int, config: RunConfig, groups: Groups) -> list[int]:
    """Of all events that this rank takes in optimizer step `step`, counted from 0."""
    parts = range(config.train.accumulate)
    return [position for part in parts for position in _micro_batch(step, part, num_events, config, groups)]


def evaluation_batches(
    dataset: EventDataset, config: RunConfig, groups: Groups
) -> Iterator[tuple[torch.Tensor, torch.Tensor, NDArray[np.int64], NDArray[np.bool_]]]:
    """This rank's (images, targets, positions, valid) of the whole dataset; as many on every rank."""
    shard = evaluation_shard(len(dataset), groups.data_rank, groups.layout.data, config.data.batch)
    batches = _read(dataset, (positions.tolist() for positions, _ in shard), config.data.workers)
    for (images, targets, _), (positions, valid) in zip(batches, shard, strict=True):
        yield images, targets, positions, valid


class _Once:
    """A batch sampler over items that are computed as they are needed; a run may have millions of steps."""

    def __init__(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._batches)


def _collate(items: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Any:
    """Stack like torch's own, which knows of shared memory, but with images channels-last, as the engine wants them.

    One copy of a batch, not two: with two, glibc gave the memory of both back after a step and faulted it in again.
    """
    rows = [(image.permute(1, 2, 0), label, position) for image, label, position in items]
    images, labels, positions = default_collate(rows)
    return images.permute(0, 3, 1, 2), labels, positions


def _read(
    dataset: EventDataset, items: Iterable[list[Any]], workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    workers = workers if dataset.reads else 0  # a rank that needs no pixels starts no processes
    loader = DataLoader(
        dataset,
        batch_sampler=_Once(items),
        collate_fn=_collate,
        num_workers=workers,
        multiprocessing_context=reader_context() if workers else None,
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),  # its own: a new loader would draw a seed from the random state of dropout
    )
    try:
        yield from loader
    except UserError as error:
        # a reader process wraps the message into its traceback
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
