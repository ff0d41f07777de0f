"""Images as torch tensors: the one module of this package that imports torch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lartpc_ds.data.augment import Augmentation, Axis, Place, augmented_pixels, augmented_read
from lartpc_ds.data.source import EventSource, LitPixels, Range, Source

__all__ = ["EventDataset", "Item"]

Item = tuple[int, Place]
"""A position in the dataset, and its place in training."""

_NO_AUGMENTATION = Augmentation((False, False), (0, 0), 0)


class EventDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images as items (image, target, k): float32 (channels, rows, cols) of this rank's tile, target, int64 scalar k.

    `indices[k]` is the image's index in `source`; `rows` and `cols` bound this rank's tile, which is the whole image by
    default. A target of pixels is cut at `target_tile` where the network gives its scores at other bounds than it takes
    its images. An item with its `Place` is augmented, a bare position is not. A rank that needs no `images`, or no
    `targets`, gets empty ones without making them. With `sparse` an image is a sparse tensor where that is smaller, and
    such an image of an event is never made dense. A dataset is safe in worker processes, because sources open files
    where they read.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int] | NDArray[np.int64],
        rows: Range | None = None,
        cols: Range | None = None,
        target_tile: tuple[Range, Range] | None = None,
        augmentation: Augmentation = _NO_AUGMENTATION,
        *,
        images: bool = True,
        targets: bool = True,
        sparse: bool = False,
    ) -> None:
        self.source = source
        self.indices: NDArray[np.int64] = np.asarray(indices, np.int64)
        self.augmentation = augmentation
        self._tile = (rows or (0, source.image_shape[1]), cols or (0, source.image_shape[2]))
        self._target_tile = target_tile or self._tile
        self._images, self._targets, self._sparse = images, targets, sparse

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each item, where images have one."""
        assert self.source.labels is not None
        return self.source.labels[self.indices]

    @property
    def reads(self) -> bool:
        """Whether an item needs more than a look at the labels."""
        return self._images or (self._targets and self.source.task != "events")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int | Item) -> tuple[Tensor, Tensor, Tensor]:
        position, place = item if isinstance(item, tuple) else (item, None)
        axes = (self.augmentation if place else _NO_AUGMENTATION).draw(place or Place(0, 0))
        image, target = torch.empty(0, 0, 0), torch.tensor(0)
        if self.reads:
            pixels, read = self._read(int(self.indices[position]), axes)
            image, target = (pixels if self._images else image), (read if self._targets else target)
        elif self._targets:
            target = torch.tensor(int(self.labels[position]))
        return image, target, torch.tensor(int(position))

    def _read(self, index: int, axes: tuple[Axis, Axis]) -> tuple[Tensor, Tensor]:
        """Image and target, read once for the smallest rectangle that holds what is wanted of both."""
        if self._sparse and isinstance(self.source, EventSource):
            pixels, label = self.source.read_lit(index)
            sizes = self.source.image_shape[1:]
            return _from_pixels(augmented_pixels(pixels, sizes, axes), self.source.image_shape), torch.as_tensor(label)
        if self.source.task != "pixels":
            image, target = augmented_read(self.source, index, *self._tile, axes)
            return self._image(image), torch.as_tensor(target)
        tiles = [self._tile] * self._images + [self._target_tile] * self._targets
        axes_of_tiles = zip(*tiles, strict=True)
        hull = [(min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in axes_of_tiles]
        image, target = augmented_read(self.source, index, hull[0], hull[1], axes)
        image, target = (
            pixels[..., rows[0] - hull[0][0] : rows[1] - hull[0][0], cols[0] - hull[1][0] : cols[1] - hull[1][0]]
            for pixels, (rows, cols) in ((image, self._tile), (target, self._target_tile))
        )
        return self._image(image), _tensor(target, np.int64)

    def _image(self, pixels: NDArray[np.float32]) -> Tensor:
        if self._sparse and _sparse_is_smaller(int(np.count_nonzero(pixels)), pixels.shape):
            return _from_pixels(LitPixels.of(pixels), pixels.shape)
        return _tensor(pixels, np.float32)


def _sparse_is_smaller(lit_pixels: int, shape: tuple[int, ...]) -> bool:
    """Whether a sparse image takes less memory than a dense one of `shape`."""
    bytes_of_value, bytes_of_place = 4, 8 * len(shape)
    return lit_pixels * (bytes_of_value + bytes_of_place) < bytes_of_value * math.prod(shape)


def _from_pixels(pixels: LitPixels, shape: tuple[int, ...]) -> Tensor:
    """The image, sparse where that is smaller."""
    values = _tensor(pixels.values, np.float32)
    place = np.ravel_multi_index(tuple(pixels.indices), shape)
    if not _sparse_is_smaller(len(place), shape):
        image = torch.zeros(shape)
        image.view(-1)[torch.from_numpy(place)] = values
        return image
    in_order = bool((place[1:] > place[:-1]).all())  # torch need not sort them, then
    indices = torch.from_numpy(pixels.indices)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=in_order)


def _tensor(pixels: NDArray[Any], dtype: type) -> Tensor:
    # a user may give a reversed view, or a view of a file that is open for reading, and torch takes neither
    return torch.from_numpy(np.require(pixels, dtype, ["C", "W"]))
