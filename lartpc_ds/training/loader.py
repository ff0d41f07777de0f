"""Batches of tensors for training and evaluation, read in this process or in reader processes.

torch's DataLoader does the work. Which events a batch has is a pure function of the step, so a resumed run starts its
loader at its step and needs no saved iterator.
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
from lartpc_ds.data.sampler import deal, evaluation_shard, global_batch, slots
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.training.readers import reader_context

__all__ = ["collate", "evaluation_batches", "step_positions", "training_steps"]

MicroBatch = tuple[torch.Tensor, torch.Tensor]
Costs = NDArray[np.float64] | None
"""The predicted cost of a step on each event of a dataset; None where all cost the same."""


def training_steps(
    dataset: EventDataset, config: RunConfig, groups: Groups, first_step: int, last_step: int, costs: Costs = None
) -> Iterator[Iterator[MicroBatch]]:
    """This rank's micro-batches (images, targets) of each optimizer step in [first_step, last_step), read lazily.

    With `costs`, the events of a global batch are dealt out so that data ranks finish together.
    """
    accumulate, num_events = config.train.accumulate, len(dataset)
    parts = ((step, part) for step in range(first_step, last_step) for part in range(accumulate))
    batches = _read(dataset, (_items(*part, num_events, config, groups, costs) for part in parts), config.data.workers)
    for _ in range(first_step, last_step):
        # map keeps no batch; a generator's frame would hold the host's images through the whole step
        yield map(itemgetter(0, 1), itertools.islice(batches, accumulate))


def _items(step: int, part: int, num_events: int, config: RunConfig, groups: Groups, costs: Costs) -> list[Item]:
    """What this rank reads for micro-batch `part` of a step: each event's position and its place in training."""
    batch, data_ranks = config.data.batch, groups.layout.data
    positions = global_batch(step, batch * data_ranks * config.train.accumulate, num_events, config.data.seed)
    mine: Iterable[int] = slots(part, groups.data_rank, data_ranks, batch)
    if costs is not None:
        mine = deal(tuple(costs[positions].tolist()), data_ranks, batch)[part, groups.data_rank].tolist()
    return [(int(positions[slot]), Place(step, slot)) for slot in mine]


def step_positions(step: int, num_events: int, config: RunConfig, groups: Groups, costs: Costs = None) -> list[int]:
    """The positions of all events that this rank takes in optimizer step `step`, counted from 0."""
    parts = range(config.train.accumulate)
    return [position for part in parts for position, _ in _items(step, part, num_events, config, groups, costs)]


def evaluation_batches(
    dataset: EventDataset, config: RunConfig, groups: Groups
) -> Iterator[tuple[torch.Tensor, torch.Tensor, NDArray[np.int64], NDArray[np.bool_]]]:
    """This rank's batches (images, targets, positions, valid) of the whole dataset; every rank has as many."""
    shard = evaluation_shard(len(dataset), groups.data_rank, groups.layout.data, config.data.batch)
    batches = _read(dataset, (positions.tolist() for positions, _ in shard), config.data.workers)
    for (images, targets, _), (positions, valid) in zip(batches, shard, strict=True):
        yield images, targets, positions, valid


def collate(items: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Any:
    """Stack items as torch's own function does, which knows of shared memory, but with channels-last images.

    The engine takes images channels-last. Stacking them so at once makes one copy of a batch instead of two; with two,
    glibc gave the memory of both back after a step and had to fetch it again.
    """
    if all(image.is_sparse for image, _, _ in items):
        images = _stacked([image for image, _, _ in items])
        return images, *default_collate([(label, position) for _, label, position in items])
    rows = [(image.to_dense().permute(1, 2, 0), label, position) for image, label, position in items]
    images, labels, positions = default_collate(rows)
    return images.permute(0, 3, 1, 2), labels, positions


def _stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Stack sparse images (channels, rows, columns) to a sparse batch."""
    numbers = torch.cat([torch.full((image._nnz(),), number) for number, image in enumerate(images)])
    indices = torch.cat([numbers[None], torch.cat([image._indices() for image in images], 1)])
    values = torch.cat([image._values() for image in images])
    shape = (len(images), *images[0].shape)
    in_order = all(image.is_coalesced() for image in images)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=in_order)


def _read(
    dataset: EventDataset, items: Iterable[list[Any]], workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    workers = workers if dataset.reads else 0  # a rank that needs no pixels starts no processes
    if workers:  # the check is off anyway; torch warns in a process that takes a sparse batch where nobody said so
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    loader = DataLoader(
        dataset,
        batch_sampler=items,  # computed as they are needed: a run may have millions of steps
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=reader_context() if workers else None,
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),  # otherwise a new loader would draw a seed from the random state of dropout
    )
    try:
        yield from loader
    except UserError as error:
        # a reader process wraps the message into its traceback
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
