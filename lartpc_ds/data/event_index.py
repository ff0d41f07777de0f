"""The table of a run's events: the place, the label and the split of each. It is saved with the run as events.csv.

Row k is the event at global index k of the run's files. The label is written by name, so that the table can be read
without the configuration. Where events have classes, an event of no class has an empty label and an empty split, and is
not used. An event that repeats another and is dropped has a label and an empty split, and is not used either. Where
pixels have classes, every event has an empty label. Where a step's cost depends on the event (`memory.lit_block`), a
last column has the predicted cost of a step on it, relative to a step on whole maps.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.duplicates import Policy, first_of_each, refuse_duplicates
from lartpc_ds.data.event import EventId
from lartpc_ds.data.integrity import write_csv
from lartpc_ds.data.source import Source
from lartpc_ds.data.split import SPLITS, assign
from lartpc_ds.data.survey import Survey
from lartpc_ds.errors import UserError

__all__ = ["EventIndex", "build_index", "read_index", "write_index"]

_COLUMNS = ("file", "index", "run", "subrun", "event", "label", "split")
_COST = "cost"


@dataclass(frozen=True, slots=True)
class EventIndex:
    """Events in global order: identity, label (-1: the event is of no class) and split ("": the event is not used)."""

    ids: tuple[EventId, ...]
    label: NDArray[np.int64]
    split: NDArray[np.str_]
    class_names: tuple[str, ...]
    cost: NDArray[np.float64] | None = None
    """The predicted cost of a step on each event, 0 for an event that is not used; None where all cost the same."""

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, split: str) -> NDArray[np.int64]:
        """The global indices of the events of `split`, ascending."""
        return np.flatnonzero(self.split == split).astype(np.int64)


def build_index(
    source: Source, shares: Mapping[str, float], seed: int, duplicates: Policy = "error", look: Survey | None = None
) -> EventIndex:
    """Split the events that have a class, or all events where images have no class as a whole.

    Raises:
        UserError: as `split.assign`; or an event repeats another, and `duplicates` does not say what to do with it.
    """
    ids = source.ids()
    split = np.full(len(ids), "", f"<U{max(map(len, SPLITS))}")
    labels = np.full(len(ids), -1, np.int64) if source.labels is None else source.labels
    used = np.arange(len(ids)) if source.labels is None else np.flatnonzero(labels >= 0)
    whose = [ids[position] for position in used]
    digests = np.zeros(len(used), "S1") if look is None else look.digests[used]
    first = np.arange(len(used))
    if duplicates == "error":
        refuse_duplicates(whose, digests)
    else:
        first = first_of_each(whose, digests)
    if duplicates == "drop":
        kept = first == np.arange(len(first))
        used, first = used[kept], first[kept]
    split[used] = assign([whose[position] for position in first], shares, seed)
    return EventIndex(tuple(ids), labels, split, source.classes)


def write_index(index: EventIndex, path: Path) -> None:
    """Write `path` as CSV with a header; an existing file is replaced, since the run folder guards itself."""
    rows = zip(index.ids, index.label.tolist(), index.split.tolist(), strict=True)
    names = (*index.class_names, "")  # the last for label -1
    table = ([*astuple(who), names[label], split] for who, label, split in rows)
    if index.cost is None:
        write_csv(path, _COLUMNS, table)
    else:
        costs = index.cost.tolist()
        write_csv(path, (*_COLUMNS, _COST), ([*row, cost] for row, cost in zip(table, costs, strict=True)))


def read_index(path: Path, class_names: Sequence[str]) -> EventIndex:
    """Read what `write_index` has written.

    Raises:
        UserError: it is another table, or it holds a label that is not in `class_names`.
    """
    codes = {"": -1, **{name: label for label, name in enumerate(class_names)}}
    ids, labels, splits, costs = [], [], [], []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        columns = tuple(rows.fieldnames or ())
        if columns not in (_COLUMNS, (*_COLUMNS, _COST)):
            raise UserError(f"{path}: columns {rows.fieldnames}; expected {', '.join(_COLUMNS)}")
        for row in rows:
            if row["label"] not in codes:
                raise UserError(f"{path}: line {rows.line_num}: label {row['label']!r} is not in {list(class_names)}")
            numbers = (int(row[name]) for name in ("index", "run", "subrun", "event"))
            ids.append(EventId(row["file"], *numbers))
            labels.append(codes[row["label"]])
            splits.append(row["split"])
            costs.append(float(row.get(_COST, 0)))
    cost = np.array(costs) if _COST in columns else None
    return EventIndex(tuple(ids), np.array(labels, np.int64), np.array(splits), tuple(class_names), cost)
