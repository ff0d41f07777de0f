"""Events that occur twice, by the detector's numbers or by their pixels.

Both kinds are common. Merged files and two simulations of one seed repeat numbers, and a writer that is given nothing
for an event repeats the event before. Whatever is done with events that are the same, they have the split of the first
of them, so that nothing is both trained on and tested with.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import EventId
from lartpc_ds.errors import UserError

__all__ = ["Policy", "describe_duplicates", "first_of_each", "refuse_duplicates"]

Policy = Literal["error", "keep", "drop"]


def first_of_each(ids: Sequence[EventId], digests: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """The position of the first event that each event is the same as, by its key, or by its digest if it has one."""
    first = list(range(len(ids)))

    def root(position: int) -> int:
        while first[position] != position:
            first[position] = position = first[first[position]]
        return position

    for pair in _pairs(ids, digests):
        low, high = sorted(map(root, pair))
        first[high] = low
    return np.array([root(position) for position in range(len(ids))], np.int64)


def refuse_duplicates(ids: Sequence[EventId], digests: NDArray[np.bytes_]) -> None:
    """Refuse events that occur twice.

    Raises:
        UserError: two events are the same; the message names both places and says how many events repeat another.
    """
    pair = next(_pairs(ids, digests), None)
    if pair is None:
        return
    first, second = (ids[position] for position in pair)
    places = f"in {first.file} at index {first.index} and in {second.file} at index {second.index}"
    same, known = digests[pair[0]] == digests[pair[1]], all(digests[list(pair)])
    if first.key == second.key:
        pixels = f", with {'the same' if same else 'other'} pixels" if known else ""
        repetition = f"event {first.key} (run/subrun/event) is {places}{pixels}"
    else:
        repetition = (
            f"the events {places} have different ids and the same pixels (larcv3 writes an event's pixels again where "
            "the next event is given none)"
        )
    count = int((first_of_each(ids, digests) != np.arange(len(ids))).sum())
    raise UserError(
        f"data.files: {repetition}; {count} of {len(ids)} events repeat another one and could train and test; set "
        'data.duplicates = "drop" to use the first of each, or "keep" to use all, in the split of the first'
    )


def describe_duplicates(
    policy: Policy, ids: Sequence[EventId], used: NDArray[np.int64], digests: NDArray[np.bytes_]
) -> list[str]:
    """A list with a sentence on what is done with the `used` events that repeat another, if there are any."""
    first = first_of_each([ids[position] for position in used], digests[used])
    count = int((first != np.arange(len(first))).sum())
    done = "left out" if policy == "drop" else "used too, in the split of the first"
    return [f"{count} of {len(first)} events repeat another one, by id or pixel by pixel: {done}"] if count else []


def _pairs(ids: Sequence[EventId], digests: NDArray[np.bytes_]) -> Iterator[tuple[int, int]]:
    """Pairs of positions: the first event with a key, or with a digest, and another event with the same."""
    for keys in ([event.key for event in ids], digests.tolist()):
        seen: dict[str | bytes, int] = {}
        for position, key in enumerate(keys):
            if key and seen.setdefault(key, position) != position:
                yield seen[key], position
