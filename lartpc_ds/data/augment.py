"""Mirrored and shifted images on global coordinates: the pixels of the source that a wanted tile is made of.

An augmented image is the source mirrored, then moved, with zeros coming in. The random draw depends on the seed, the
step and the event's index in the global batch only, and the geometry counts in pixels of the whole image. So every tile
of any layout, and a resumed run, cut their part out of the same augmented image. Rejected: augmenting a batch after it
is read, which on a tile mirrors the tile.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.source import LitPixels, Range, Source

__all__ = ["Augmentation", "Axis", "AxisRead", "Place", "augmented_pixels", "augmented_read"]

_KEY = 0xF11B  # keeps these draws apart from draws of other purposes with the same seed


class Place(NamedTuple):
    """The place of an event in training, on which its random draw depends."""

    step: int
    slot: int
    """The event's index in the global batch."""


class Axis(NamedTuple):
    """How one axis is augmented: it is mirrored first, then moved towards larger positions."""

    mirrored: bool = False
    shift: int = 0


class AxisRead(NamedTuple):
    """How a range of the augmented axis is made: read, mirror, take the first `taken` pixels, and pad with zeros."""

    read: Range
    taken: int
    before: int
    after: int

    @classmethod
    def of(cls, wanted: Range, size: int, axis: Axis) -> "AxisRead":
        """How the range `wanted` of an axis of `size` pixels is made."""
        start, stop = (min(max(end - axis.shift, 0), size) for end in wanted)
        if start == stop:  # all of it lies outside the source, which need not be able to read an empty range
            return cls((0, 1), 0, wanted[1] - wanted[0], 0)
        read = (size - stop, size - start) if axis.mirrored else (start, stop)
        before = start + axis.shift - wanted[0]
        return cls(read, stop - start, before, wanted[1] - wanted[0] - before - (stop - start))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """`data.flip` and `data.shift` of a run: which of (rows, columns) are mirrored, and how far each is moved."""

    flip: tuple[bool, bool]
    shift: tuple[int, int]
    seed: int

    def draw(self, place: Place) -> tuple[Axis, Axis]:
        """How the rows and the columns of one event are augmented, each drawn independently of the other."""
        if self.flip == (False, False) and self.shift == (0, 0):
            return Axis(), Axis()
        rng = np.random.default_rng([_KEY, self.seed, place.step, place.slot])
        mirrored = rng.random(2) < 0.5
        shift = [int(rng.integers(-most, most, endpoint=True)) for most in self.shift]
        rows, cols = (Axis(self.flip[axis] and bool(mirrored[axis]), shift[axis]) for axis in (0, 1))
        return rows, cols


def augmented_pixels(pixels: LitPixels, sizes: Range, axes: tuple[Axis, Axis]) -> LitPixels:
    """The lit pixels of the augmented image of `sizes` (rows, columns), from those of the image."""
    channel, *places = pixels.indices
    inside = np.ones(len(channel), np.bool_)
    for number, (size, axis) in enumerate(zip(sizes, axes, strict=True)):
        place = size - 1 - places[number] if axis.mirrored else places[number]
        places[number] = place + axis.shift
        inside &= (places[number] >= 0) & (places[number] < size)
    return LitPixels(np.stack([channel, *places])[:, inside], pixels.values[inside])


def augmented_read(
    source: Source, index: int, rows: Range, cols: Range, axes: tuple[Axis, Axis]
) -> tuple[NDArray[np.float32], Any]:
    """The tile [rows) x [cols) of the augmented image, and its target; a target of pixels is -1 where zeros came in."""
    if axes == (Axis(), Axis()):
        return source.read(index, rows, cols)
    sizes = source.image_shape[1:]
    down, across = (AxisRead.of(*axis) for axis in zip((rows, cols), sizes, axes, strict=True))
    image, target = source.read(index, down.read, across.read)
    image = _placed(image, down, across, axes, 0)
    return image, _placed(target, down, across, axes, -1) if source.task == "pixels" else target


def _placed(pixels: NDArray[Any], down: AxisRead, across: AxisRead, axes: tuple[Axis, Axis], fill: int) -> NDArray[Any]:
    if pixels.dtype.kind == "u":
        pixels = pixels.astype(np.int64)
    if axes[0].mirrored:
        pixels = pixels[..., ::-1, :]
    if axes[1].mirrored:
        pixels = pixels[..., ::-1]
    pixels = pixels[..., : down.taken, : across.taken]
    around = ((0, 0),) * (pixels.ndim - 2) + ((down.before, down.after), (across.before, across.after))
    return np.pad(pixels, around, constant_values=fill)
