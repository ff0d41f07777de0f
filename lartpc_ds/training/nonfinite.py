"""Which events a number that is not finite comes from.

A run that goes on after a loss of nan trains nothing and ends as if all were well; so it stops, and says where to look.
A loss covers a whole micro-batch, so its events are read again and told by their largest pixel: that costs nothing
until it is needed, where keeping the images of a step for it would cost memory in every step.
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
    """The error to raise; a collective of all ranks, which get the same.

    Args:
        what: was found, and at which step.
        suspects: positions in `dataset` that this rank suspects.
        dataset: of this rank's tile.
        index: of the run.
        advice: what to do where the pixels are sane.
    """
    positions = sorted(set().union(*_of_all(sorted(suspects))))
    extents: dict[int, float] = {}
    for one in _of_all({position: _largest(dataset, position) for position in positions[:_MOST_READ]}):
        extents |= {p: _larger(value, extents.get(p, 0.0)) for p, value in one.items()}
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
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def _largest(dataset: EventDataset, position: int) -> float:
    """Of this rank's tile; 0 where the rank needs no images."""
    image = dataset[position][0]
    return float(image.abs().max()) if image.numel() else 0.0


def _larger(one: float, other: float) -> float:
    """What is no number is the largest of all."""
    return max(value if not math.isnan(value) else math.inf for value in (one, other))
