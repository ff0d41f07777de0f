"""Many event files as one sequence of events, addressed by (file, index) or by one global index.

Files are kept in the sorted order of their paths, and are never merged or copied. A new format needs a `Reader`, one
entry in `FORMATS`, and its name in `data.format` of `config/run.py`.
"""

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Event, EventId, Voxels
from lartpc_ds.data.larcv3 import Larcv3Reader
from lartpc_ds.data.truth import Primaries
from lartpc_ds.errors import UserError

__all__ = ["FORMATS", "Block", "EventFiles", "Reader", "expand", "make_reader", "notes_of", "open_files"]

_MAX_OPEN_FILES = 64
"""One process keeps at most so many files open; a thousand would meet the usual limit of 1024 descriptors."""


class Block(Protocol):
    """Consecutive events of one file. It can be pickled, and it holds no open file."""

    def read(self) -> Voxels:
        """All voxels in one go, checked as when the events are read one by one."""


class Reader(Protocol):
    """The events of one file. Its construction checks the whole structure and raises UserError. It can be pickled."""

    format: str
    path: Path
    num_events: int
    plane_shapes: tuple[tuple[int, int], ...]
    product: str
    truth: str | None
    notes: tuple[str, ...]
    """Sentences that a user should know and that stop nothing, for example about unset event ids."""

    @property
    def num_planes(self) -> int:
        """The number of wire planes of each event."""

    def event_id(self, index: int) -> EventId:
        """The identity of event `index`."""

    @property
    def plane_numbers(self) -> tuple[int, ...]:
        """The file's own number of each plane."""

    @property
    def num_voxels(self) -> NDArray[np.int64]:
        """The number of voxels of each event, which says what reading it costs."""

    def block(self, first: int, stop: int) -> Block:
        """The block of events [first, stop)."""

    def read(self, index: int) -> Event:
        """Event `index`; raises UserError if it is damaged."""

    def primaries(self) -> Primaries:
        """The first particle of every event; raises UserError if the file has no truth."""

    def close(self) -> None:
        """Release the file; the next read opens it again."""


FORMATS: Mapping[str, Callable[..., Reader]] = {"larcv3": Larcv3Reader}


def expand(patterns: Sequence[str]) -> list[Path]:
    """The paths that match the glob patterns, sorted, each file once; raises UserError if a pattern matches no file."""
    if not patterns:
        raise UserError("data.files: no file given; expected paths or patterns, such as ['events/*.h5']")
    path_of_file: dict[Path, Path] = {}
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        # a file whose name holds glob characters is meant literally
        matches = [expanded] if Path(expanded).exists() else glob.glob(expanded, recursive=True)
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            hint = f"; it is a folder, did you mean {pattern.rstrip('/')}/*.h5?" if Path(expanded).is_dir() else ""
            raise UserError(f"data.files: {pattern!r} matches no file{hint}")
        for path in files:
            path_of_file.setdefault(path.resolve(), path)
    return sorted(path_of_file.values())


def make_reader(path: Path, format: str = "auto", product: str = "auto", truth: str = "auto") -> Reader:
    """A reader for one file; the format "auto" is larcv3, the only one so far."""
    name = "larcv3" if format == "auto" else format
    if name not in FORMATS:
        raise UserError(f"data.format: {format!r} is unknown; expected one of: auto, {', '.join(FORMATS)}")
    return FORMATS[name](path, product=product, truth=truth)


class EventFiles:
    """The events of all readers, one after the other; raises UserError if files differ in their number of planes."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = tuple(readers)
        for reader in self.readers[1:]:
            first = self.readers[0]
            if reader.num_planes != first.num_planes:
                raise UserError(
                    f"data.files: {reader.path} has {reader.num_planes} planes, {first.path} has {first.num_planes}; "
                    "expected the same detector in all files"
                )
        self._stops = np.cumsum([reader.num_events for reader in self.readers])
        self._recent: list[int] = []

    @property
    def num_planes(self) -> int:
        """The number of wire planes of each event."""
        return self.readers[0].num_planes

    @property
    def largest_plane(self) -> tuple[int, int]:
        """The (wires, ticks) that hold every plane of every file."""
        shapes = [shape for reader in self.readers for shape in reader.plane_shapes]
        return max(wires for wires, _ in shapes), max(ticks for _, ticks in shapes)

    def __len__(self) -> int:
        return int(self._stops[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """The number of the file, and the index in it, of the event at global index `position`."""
        assert 0 <= position < len(self), f"event {position} of {len(self)}"
        file = int(np.searchsorted(self._stops, position, side="right"))
        return file, position - (int(self._stops[file - 1]) if file else 0)

    def event_ids(self) -> list[EventId]:
        """The identities of all events, in global order."""
        return [reader.event_id(index) for reader in self.readers for index in range(reader.num_events)]

    def read(self, position: int) -> Event:
        """The event at global index `position`."""
        file, index = self.locate(position)
        if file in self._recent:
            self._recent.remove(file)
        self._recent.append(file)
        if len(self._recent) > _MAX_OPEN_FILES:
            self.readers[self._recent.pop(0)].close()
        return self.readers[file].read(index)

    def primaries(self) -> Primaries:
        """The first particle of every event, in global order; raises UserError if a file has no truth."""
        return Primaries.concatenate([reader.primaries() for reader in self.readers])

    def close(self) -> None:
        """Close all files of this process."""
        for reader in self.readers:
            reader.close()
        self._recent.clear()


def notes_of(readers: Sequence[Reader]) -> list[str]:
    """The notes of all readers, each once, with the files that it is about."""
    paths: dict[str, list[Path]] = {}
    for reader in readers:
        for note in reader.notes:
            paths.setdefault(note, []).append(reader.path)
    return [f"{_some(files)}: {note}" for note, files in paths.items()]


def _some(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 1} more file(s)" if len(files) > 1 else ""
    return f"{files[0]}{more}"


def open_files(patterns: Sequence[str], format: str = "auto", product: str = "auto", truth: str = "auto") -> EventFiles:
    """Check and open all files that match `patterns`, sorted by path."""
    return EventFiles([make_reader(path, format, product, truth) for path in expand(patterns)])
