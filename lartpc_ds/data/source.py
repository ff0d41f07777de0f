"""One small interface of images, for event files and for a user's own images.

A source reads one tile of one image and the target that belongs to it; the code that trains and evaluates knows nothing
else about events. A user writes `Images`, and `lartpc_ds` makes a `Source` of them or of event files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import EventId
from lartpc_ds.data.files import EventFiles
from lartpc_ds.data.images import Preprocessing, densify, lit_pixels

__all__ = ["TASKS", "EventSource", "Images", "LitPixels", "Range", "Source"]

Range = tuple[int, int]
"""A range [start, stop) on one axis, in pixels of the whole image."""

TASKS = ("events", "pixels", "own")
"""The kinds of target: a class of the event, a class of every pixel, or what only a user's own loss understands."""


class Images(Protocol):
    """A user's own images, which `data.target` names: such an object, or a callable that makes one.

    `image_shape` is (channels, rows, columns) of every image, and `classes` are the names of the classes. With the
    optional `labels`, one int per image, whole images are classified; an image with a negative label is not used.
    Splits, class counts and class weights are then those of events. Every rank and every reader process makes its own
    object.
    """

    image_shape: tuple[int, int, int]
    classes: Sequence[str]

    def __len__(self) -> int:
        """The number of images."""

    def read(self, index: int, rows: Range, cols: Range) -> tuple[NDArray[np.float32], Any]:
        """One tile and its target, the same at every call.

        The image is float32 (channels, rows, columns of the tile). The target is an int class, or an int array (rows,
        columns of the tile) with a class per pixel, which is negative where the pixel is not counted.
        """


class Source(Protocol):
    """Images that are ready for a network."""

    image_shape: tuple[int, int, int]
    """The (channels, rows, columns) that the network sees."""
    recorded_shape: Range
    """The (rows, columns) before any downsampling."""
    classes: tuple[str, ...]
    task: str

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of each image, negative where it has none; None where images have no class as a whole."""

    def __len__(self) -> int:
        """The number of images."""

    def ids(self) -> list[EventId]:
        """The identity of each image, for splits and tables."""

    def read(self, index: int, rows: Range, cols: Range) -> tuple[NDArray[np.float32], Any]:
        """One tile of one image, and its target."""


class LitPixels(NamedTuple):
    """The pixels of an image that are not 0."""

    indices: NDArray[np.int64]
    """The channel, row and column of each, (3, pixels)."""
    values: NDArray[np.float32]

    @classmethod
    def of(cls, image: NDArray[np.float32]) -> "LitPixels":
        """The lit pixels of a dense image (channels, rows, columns)."""
        indices = np.stack(np.nonzero(image))
        return cls(indices, image[tuple(indices)])


class EventSource:
    """Whole events as images; the target is the event's class."""

    task = "events"

    def __init__(
        self, files: EventFiles, pre: Preprocessing, labels: NDArray[np.int64], classes: Sequence[str] = ()
    ) -> None:
        assert len(labels) == len(files), "one label for each event"
        self.files, self.pre, self.labels, self.classes = files, pre, labels, tuple(classes)
        self.image_shape = (files.num_planes, *pre.shape)
        self.recorded_shape = pre.image_shape

    def __len__(self) -> int:
        return len(self.files)

    def ids(self) -> list[EventId]:
        """The identities of the events."""
        return self.files.event_ids()

    def read(self, index: int, rows: Range, cols: Range) -> tuple[NDArray[np.float32], int]:
        """The tile, made dense, and the class; raises UserError if the event is damaged."""
        return densify(self.files.read(index), self.pre, rows, cols), int(self.labels[index])

    def read_lit(self, index: int) -> tuple[LitPixels, int]:
        """The lit pixels of the whole image, and the class; raises UserError if the event is damaged."""
        planes = lit_pixels(self.files.read(index), self.pre)
        places = [np.divmod(flat, self.image_shape[2]) for flat, _ in planes]
        channels = [np.full(len(flat), plane) for plane, (flat, _) in enumerate(planes)]
        indices = [np.concatenate(parts) for parts in (channels, *zip(*places, strict=True))]
        values = np.concatenate([values for _, values in planes])
        return LitPixels(np.stack(indices), values), int(self.labels[index])
