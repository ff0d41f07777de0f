"""Which events train, validate or test: a hash of the event's identity decides, and nothing else.

So an event keeps its split when files are added, reordered or converted, and two people with the same files and seed
train on the same events. Where the detector's numbers are all -1, the name of the file and the index stand for them;
the folder is left out, so that moving the data changes no split. Rejected: shuffling a list of indices, which moves
events from test to train as soon as one file is added.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import EventId
from lartpc_ds.errors import UserError

__all__ = ["SPLITS", "assign"]

SPLITS = ("train", "validation", "test")


def assign(ids: Sequence[EventId], shares: Mapping[str, float], seed: int) -> NDArray[np.str_]:
    """The split of each event, one of `SPLITS`; `shares` are a checked `data.split`, which sums to 1.

    Raises:
        UserError: a split with a share above 0 gets no event.
    """
    names = [name for name in SPLITS if shares.get(name, 0) > 0]
    edges = np.cumsum([shares[name] for name in names])
    edges[-1] = 1.0
    split = np.array(names)[np.searchsorted(edges, [_uniform(seed, event) for event in ids], side="right")]
    for name in names:
        if not (split == name).any():
            raise UserError(
                f"data.split.{name} = {shares[name]} got none of {len(ids)} events; "
                "give it share 0, more events or another data.seed"
            )
    return split


def _uniform(seed: int, event: EventId) -> float:
    """A number in [0, 1) that depends on the seed and the event's identity only."""
    identity = event.key if event.has_numbers else f"{PurePath(event.file).name}:{event.index}"
    digest = hashlib.blake2b(f"{seed}:{identity}".encode(), digest_size=8).digest()
    # 53 bits, what a double holds: 64 could round up to 1.0
    return (int.from_bytes(digest, "big") >> 11) / 2**53
