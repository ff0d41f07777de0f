"""A user's own images as a source, which is checked before any process starts and at every read.

The user's object is made anew in each process, so that it may hold open files. A first small read is checked in full:
its type, its shape, its values, and that a part equals the same part of a larger read, without which tiles would train
on other pixels than one device.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import EventId
from lartpc_ds.data.source import Images, Range
from lartpc_ds.errors import UserError
from lartpc_ds.user_code import import_target, where

__all__ = ["UserImages", "check_images"]

_FIRST_READ = 32  # pixels per axis of the read that is checked before a run
_ADVICE = "name an object with __len__, image_shape, classes and read, or a function that makes one"


class UserImages:
    """The images that `data.target` names; raises UserError at once for what is missing or wrong."""

    def __init__(self, target: str, images: Images, task: str | None = None) -> None:
        self.setting, self._target, self._images = f"data.target = {target!r}", target, images
        self._check_attributes()
        self.image_shape = _shape_of(images.image_shape, self.setting)
        self.recorded_shape = self.image_shape[1:]
        self.classes = _names_of(images.classes, self.setting)
        self.labels = _labels_of(images, len(self), len(self.classes), self.setting)
        self.task = task or ("events" if self.labels is not None else self._task_of_target())

    @classmethod
    def open(cls, target: str, task: str | None = None) -> Self:
        """Import the user's object; a given `task` saves the read that finds it out."""
        target_object: Any = import_target("data.target", target, "name", _ADVICE)
        # a class has the attributes of its objects, and yet must be called to make one
        is_factory = isinstance(target_object, type) or not hasattr(target_object, "read")
        if callable(target_object) and is_factory:
            try:
                target_object = target_object()
            except Exception as error:  # whatever the user's own code raises
                raise UserError(f"data.target = {target!r}: calling it without arguments: {where(error)}") from error
        return cls(target, target_object, task)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self._target, self.task)

    def __len__(self) -> int:
        return len(self._images)

    def ids(self) -> list[EventId]:
        """The identity of each image: the name of the target and an index, without numbers of a detector."""
        return [EventId(self._target, index, -1, -1, -1) for index in range(len(self))]

    def read(self, index: int, rows: Range, cols: Range) -> tuple[NDArray[np.float32], Any]:
        """The user's tile and its target; raises UserError if they are not as they must be."""
        call = f"{self.setting}: read({index}, {rows}, {cols})"
        image, target = _pair(self._images.read(index, rows, cols), call)
        shape = (self.image_shape[0], rows[1] - rows[0], cols[1] - cols[0])
        if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.shape != shape:
            raise UserError(f"{call}: the image must be a float32 array of {shape}, but is {_kind(image)}")
        if not np.isfinite(image).all():
            raise UserError(f"{call}: the image holds values that are not finite")
        if self.task == "events":
            return image, self._checked_class(target, index, call)
        if self.task == "pixels":
            return image, self._checked_map(target, shape[1:], call)
        return image, target

    def _checked_class(self, target: Any, index: int, call: str) -> int:
        if not _is_int(target):
            raise UserError(
                f"{call}: the target must be an int, the class of the image, but is {_kind(target)}; for a class per "
                "pixel remove the attribute labels"
            )
        assert self.labels is not None
        if target != self.labels[index]:
            raise UserError(f"{call}: the target is {target}, but labels[{index}] is {self.labels[index]}")
        return int(target)

    def _checked_map(self, target: Any, shape: tuple[int, ...], call: str) -> NDArray[np.integer[Any]]:
        if not isinstance(target, np.ndarray) or target.dtype.kind not in "iu" or target.shape != shape:
            raise UserError(f"{call}: the target must be an int array of {shape}, but is {_kind(target)}")
        if target.size and target.max() >= len(self.classes):
            raise UserError(
                f"{call}: the target holds {target.max()}; there are {len(self.classes)} classes, so expected 0 to "
                f"{len(self.classes) - 1}, or negative for pixels that are not counted"
            )
        return target

    def _check_attributes(self) -> None:
        missing = [name for name in ("__len__", "image_shape", "classes", "read") if not hasattr(self._images, name)]
        if missing:
            raise UserError(f"{self.setting}: {_kind(self._images)} has no {', '.join(missing)}; {_ADVICE}")
        if not callable(self._images.read):
            raise UserError(f"{self.setting}: read must be a method (index, rows, cols) -> (image, target)")
        try:
            number = len(self._images)
        except Exception as error:  # whatever the user's own code raises
            raise UserError(f"{self.setting}: len() of it: {where(error)}") from error
        if number < 1:
            raise UserError(f"{self.setting}: has no images")

    def first_target(self) -> Any:
        """The target of a small part of the first image."""
        return _read(self._images, self.setting, 0, *_small_parts(self.recorded_shape)[0])[1]

    def _task_of_target(self) -> str:
        """The task that the first target shows: a class per pixel, or something of the user's own."""
        target = self.first_target()
        shape = tuple(stop - start for start, stop in _small_parts(self.recorded_shape)[0])
        is_map = isinstance(target, np.ndarray) and target.dtype.kind in "iu" and target.shape == shape
        return "pixels" if is_map else "own"


def check_images(source: UserImages, *, own_loss: bool) -> None:
    """Check the types and values of a first read, and that a part of it is the part of a larger read.

    Raises:
        UserError: the message names the read and what is wrong with it; or a target is such that only a loss of the
            user's own could understand it, and there is none (`own_loss`).
    """
    if source.task == "own" and not own_loss:
        raise UserError(
            f"{source.setting}: its targets are {_kind(source.first_target())}; expected an int array (rows, columns "
            "of the tile) with a class per pixel, or an int class and the attribute labels; for any other give "
            "train.loss_target"
        )
    used = 0 if source.labels is None else int(np.flatnonzero(source.labels >= 0)[0])
    for rows, cols in _small_parts(source.recorded_shape):
        image, target = _read(source, source.setting, used, rows, cols)
        part_rows, part_cols = _middle(rows), _middle(cols)
        part, part_target = _read(source, source.setting, used, part_rows, part_cols)
        inside = (
            slice(part_rows[0] - rows[0], part_rows[1] - rows[0]),
            slice(part_cols[0] - cols[0], part_cols[1] - cols[0]),
        )
        same = np.array_equal(part, image[:, *inside])
        if source.task == "pixels":
            same = same and np.array_equal(part_target, target[inside])
        if not same:
            raise UserError(
                f"{source.setting}: read({used}, {part_rows}, {part_cols}) differs from the same part of read({used}, "
                f"{rows}, {cols}); a tile must be the same pixels however it is read: use rows and cols as (start, "
                "stop) of the whole image, draw no random numbers (data.flip and data.shift augment)"
            )


def _small_parts(shape: Range) -> list[tuple[Range, Range]]:
    """Two small parts of the image: in the middle, and in the last corner."""
    middle = [((size - min(size, _FIRST_READ)) // 2, min(size, _FIRST_READ)) for size in shape]
    corner = [(size - min(size, _FIRST_READ), min(size, _FIRST_READ)) for size in shape]
    both = [[(start, start + length) for start, length in window] for window in (middle, corner)]
    return [(rows, cols) for rows, cols in both]


def _middle(bounds: Range) -> Range:
    """Somewhat less of a range, inside it."""
    length = bounds[1] - bounds[0]
    return bounds[0] + length // 3, bounds[1] - length // 4


def _read(images: Any, setting: str, index: int, rows: Range, cols: Range) -> tuple[Any, Any]:
    call = f"{setting}: read({index}, {rows}, {cols})"
    try:
        return _pair(images.read(index, rows, cols), call)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"{call}: {where(error)}") from error


def _pair(pair: Any, call: str) -> tuple[Any, Any]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UserError(f"{call}: must return (image, target), but returns {_kind(pair)}")
    return pair


def _shape_of(shape: Any, setting: str) -> tuple[int, int, int]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sizes) != 3 or not all(_is_int(size) and size >= 1 for size in sizes):
        raise UserError(
            f"{setting}: image_shape must be (channels, rows, columns), three ints of at least 1, but is {shape}"
        )
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _names_of(classes: Any, setting: str) -> tuple[str, ...]:
    names = tuple(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UserError(f"{setting}: classes must be a sequence of names, each once, but is {classes!r}")
    return names


def _labels_of(images: Images, number: int, num_classes: int, setting: str) -> NDArray[np.int64] | None:
    given = getattr(images, "labels", None)
    if given is None:
        return None
    labels = np.asarray(given)
    if labels.shape != (number,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{setting}: labels must be {number} ints, one per image, but they are {labels.dtype} of {labels.shape}"
        )
    if labels.max() >= num_classes or labels.max() < 0:
        raise UserError(
            f"{setting}: labels go from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}, the places "
            "in classes, or negative for images that are not used"
        )
    return np.maximum(labels.astype(np.int64), -1)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of {value.shape}"
    return type(value).__name__
