"""Which events a number that is not finite comes from.

A run that goes on after a loss of nan trains nothing and ends as if all were well. So it stops and says where to look.
A loss covers a whole micro-batch, so the events of the micro-batch are read again and ranked by their largest pixel.
Rejected: keeping the images of a step for this, which would cost memory in every step.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist

from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.errors import RunError

__all__ = ["blame"]

_MOST_READ = 64
_MOST_NAMED = 3


def blame(what: str, suspects: Iterable[int], dataset: EventDataset, index: EventIndex, advice: str) -> RunError:
    """The error to raise; a collective of all ranks, which all get the same error.

    Args:
        what: a clause that says what is not finite, and at which step.
        suspects: positions in `dataset` that this rank suspects.
        dataset: the dataset of this rank's tile.
        index: the table of the run's events.
        advice: what the user should do where the pixels are sane.
    """
    positions = sorted(set().union(*_of_all(sorted(suspects))))
    extents: dict[int, float] = {}
    for of_rank in _of_all({position: _largest(dataset, position) for position in positions[:_MOST_READ]}):
        extents |= {position: _larger(value, extents.get(position, 0.0)) for position, value in of_rank.items()}
    ranked = sorted(extents, key=lambda position: _larger(extents[position], 0.0), reverse=True)
    named = []
    for position in ranked[:_MOST_NAMED]:
        who = index.ids[int(dataset.indices[position])]
        named.append(
            f"{extents[position]:.3g} in event {who.index} of {who.file} (run {who.run}, subrun {who.subrun}, event "
            f"{who.event})"
        )
    more = f" and {len(positions) - len(named)} more" if len(positions) > len(named) else ""
    return RunError(
        f"{what}. It comes from {len(positions)} event(s), whose largest pixels as the network gets them are: "
        f"{'; '.join(named)}{more}. Mend or leave out an event with an absurd value (`lartpc-ds inspect`); {advice}"
    )


def _of_all(mine: Any) -> list[Any]:
    """What each rank has given."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def _largest(dataset: EventDataset, position: int) -> float:
    """The largest pixel of this rank's tile by magnitude; 0 where the rank needs no images."""
    image = dataset[position][0]
    pixels = image._values() if image.is_sparse else image
    return float(pixels.abs().max()) if pixels.numel() else 0.0


def _larger(first: float, second: float) -> float:
    """The larger of two numbers, where NaN counts as infinite."""
    return max(value if not math.isnan(value) else math.inf for value in (first, second))
