"""The images of a run, from its configuration: which files or which object of a user's, their size and their split."""

import os
from collections.abc import Callable

import numpy as np

from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.augment import Augmentation
from lartpc_ds.data.detectors import detector
from lartpc_ds.data.duplicates import describe_duplicates
from lartpc_ds.data.event_index import EventIndex, build_index
from lartpc_ds.data.files import EventFiles, notes_of, open_files
from lartpc_ds.data.images import Preprocessing
from lartpc_ds.data.labels import check_labels, class_names, label_classes
from lartpc_ds.data.lit_shares import Cut
from lartpc_ds.data.source import EventSource, Source
from lartpc_ds.data.survey import ABSURD, Survey, check_survey, describe_isolated, describe_values, survey
from lartpc_ds.data.users import UserImages, check_images
from lartpc_ds.errors import UserError

__all__ = [
    "augmentation",
    "image_shape",
    "index_events",
    "network_input",
    "open_events",
    "open_source",
    "preprocessing",
    "reopen_source",
    "survey_events",
]


def open_source(config: RunConfig, *, needs_every_class: bool = True) -> Source:
    """The images of a run that has not begun, events or a user's own, checked.

    Training `needs_every_class`; an evaluation may have events of some classes only.

    Raises:
        UserError: as the readers say; there is no truth; a class has no events; a user's images do not fit.
    """
    data = config.data
    if data.target is None:
        files = open_events(config)
        names = class_names(data.labels, data.classes)
        labels = label_classes(files.primaries(), data.labels, data.classes)
        if needs_every_class:
            check_labels(labels, names)
        return EventSource(files, preprocessing(config, image_shape(config, files)), labels, names)
    source = UserImages.open(data.target)
    if source.labels is not None:
        check_labels(source.labels, source.classes)
    check_images(source, own_loss=config.train.loss_target is not None)
    _check_task(config, source)
    return source


def _check_task(config: RunConfig, source: Source) -> None:
    """Refuse keys that the task of a user's images does not allow."""
    if config.train.class_weights != "none" and source.labels is None:
        raise UserError(
            f"train.class_weights = {config.train.class_weights!r}: data.target = {config.data.target!r} has no "
            "labels, the classes of whole images, to count; weigh pixels inside a loss of your own (train.loss_target)"
        )
    if source.task == "own" and (config.data.flip or config.data.shift != (0, 0)):
        raise UserError(
            f"data.flip and data.shift: data.target = {config.data.target!r} has targets that are neither a class nor "
            "a class per pixel, so they cannot go with the image; remove both keys"
        )


def reopen_source(config: RunConfig, index: EventIndex, image_shape: tuple[int, int], task: str) -> Source:
    """The images of a run as its ranks read them; what the run folder says is not looked up again."""
    if config.data.target is not None:
        return UserImages.open(config.data.target, task)
    return EventSource(open_events(config), preprocessing(config, image_shape), index.label, index.class_names)


def open_events(config: RunConfig) -> EventFiles:
    """The event files of a run.

    Raises:
        UserError: as the readers say.
    """
    data = config.data
    return open_files(data.files, data.format, data.product, data.truth)


def survey_events(
    config: RunConfig,
    source: Source,
    limit: float = ABSURD,
    on_events: Callable[[int], None] = lambda _: None,
    cut: Cut | None = None,
) -> tuple[Survey | None, list[str]]:
    """Look at every event that the run uses, and return what was seen and sentences about it for the user.

    A user's own images are not looked at here, because they are checked when they are read. `on_events` gets the number
    of events that have been passed. With a `cut` the survey has the shares of what is lit.

    Raises:
        UserError: a damaged event, or a value above `limit` that neither `data.saturate` nor `data.threshold` takes
        out.
    """
    if not isinstance(source, EventSource):
        return None, []
    used = source.labels >= 0
    look = survey(source.files.readers, used, len(os.sched_getaffinity(0)), on_events, pre=source.pre, cut=cut)
    check_survey(look, source.files, config.data.saturate, config.data.threshold, limit)
    sentences = [*notes_of(source.files.readers), *describe_values(look, source.files, used)]
    if config.data.isolated:
        sentences.append(describe_isolated([look], config.data.isolated))
    if config.data.duplicates != "error":
        sentences += describe_duplicates(config.data.duplicates, source.ids(), np.flatnonzero(used), look.digests)
    return look, sentences


def index_events(config: RunConfig, source: Source, look: Survey | None = None) -> EventIndex:
    """Labels and splits of all events; copies are found where there was a `look` at the events.

    Raises:
        UserError: a split of non-zero share is empty, or an event occurs twice.
    """
    data = config.data
    return build_index(source, data.split.model_dump(), data.seed, data.duplicates, look)


def augmentation(config: RunConfig) -> Augmentation:
    """How images are augmented in training."""
    flip = config.data.flip
    mirrored = (flip in (True, "both", "wires"), flip in (True, "both", "ticks"))
    return Augmentation(mirrored, config.data.shift, config.data.seed)


def preprocessing(config: RunConfig, image_shape: tuple[int, int]) -> Preprocessing:
    """How the network's pixels are made from the file's."""
    data = config.data
    return Preprocessing(image_shape, data.downsample_factors, data.threshold, data.isolated, data.saturate)


def network_input(config: RunConfig) -> tuple[tuple[int, int, int], int]:
    """The (planes, rows, columns) that the network sees, and the number of classes.

    No file is opened where `data.detector` names a detector.

    Raises:
        UserError: as `open_source`, where files must be opened.
    """
    if config.data.target is None and config.data.detector != "auto":
        known = detector(config.data.detector)
        rows, cols = preprocessing(config, known.image_shape).shape
        return (len(known.planes), rows, cols), len(config.data.classes)
    source = open_source(config)
    return source.image_shape, len(source.classes)


def image_shape(config: RunConfig, files: EventFiles) -> tuple[int, int]:
    """The (wires, ticks) of a run's images: those of the detector, or the largest of any plane in the files.

    Raises:
        UserError: a plane of the files does not fit the detector's image.
    """
    largest = files.largest_plane
    if config.data.detector == "auto":
        return largest
    shape = detector(config.data.detector).image_shape
    if largest[0] > shape[0] or largest[1] > shape[1]:
        raise UserError(
            f"data.detector = {config.data.detector!r}: its image is {shape[0]} wires x {shape[1]} ticks, but the "
            f'files hold planes of up to {largest[0]} x {largest[1]}; take the right detector, or "auto"'
        )
    return shape
