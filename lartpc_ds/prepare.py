"""Everything a run must get right before its first process starts, and everything its ranks read back.

`prepare` turns checked configurations into a `Job` (a few integers and names) and the table of events, and raises a
UserError for whatever cannot work. The run folder carries both to the ranks; ranks decide nothing by themselves.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from lartpc_ds.config import RunConfig
from lartpc_ds.data.event_index import EventIndex, build_index
from lartpc_ds.data.files import EventFiles, open_files
from lartpc_ds.data.images import Preprocessing
from lartpc_ds.data.labels import check_labels, class_names, label_classes
from lartpc_ds.detectors import detector
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import build_model
from lartpc_ds.parallel.spatialize import TilePlan, TileShare, plan_tiles, shares
from lartpc_ds.weights import check_weights

__all__ = [
    "Job",
    "absolute_paths",
    "class_weights",
    "image_shape",
    "index_events",
    "make_job",
    "make_model",
    "open_events",
    "plan_of",
    "preprocessing",
    "tile_shares",
    "with_files",
]


@dataclass(frozen=True, slots=True)
class Job:
    """What the ranks need beside the configurations. `image_shape` is (wires, ticks) before downsampling."""

    layout: Layout
    max_steps: int
    planes: int
    image_shape: tuple[int, int]
    classes: tuple[str, ...]
    parameters: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict` after a way through JSON."""
        fixed = {"layout": Layout(**tree["layout"]), "classes": tuple(tree["classes"])}
        return cls(**{**tree, **fixed, "image_shape": tuple(tree["image_shape"])})


def open_events(config: RunConfig) -> EventFiles:
    """The event files of a run; UserError as the readers say."""
    data = config.data
    return open_files(data.files, data.format, data.product, data.truth)


def index_events(config: RunConfig, files: EventFiles) -> EventIndex:
    """Labels and splits of all events.

    Raises:
        UserError: no truth, a class without events, an empty split of non-zero share, an event twice.
    """
    data = config.data
    names = class_names(data.labels, data.classes)
    labels = label_classes(files.primaries(), data.labels, data.classes)
    check_labels(labels, names)
    return build_index(files, labels, names, data.split.model_dump(), data.seed)


def preprocessing(config: RunConfig, image_shape: tuple[int, int]) -> Preprocessing:
    """From the file's pixels to the network's."""
    data = config.data
    return Preprocessing(image_shape, data.downsample_factors, data.threshold, data.saturate)


def image_shape(config: RunConfig, files: EventFiles) -> tuple[int, int]:
    """(wires, ticks) of a run: the detector's, or the largest of any plane in the files.

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


def make_model(config: RunConfig, planes: int, num_classes: int) -> nn.Module:
    """The network of a run, freshly initialised from torch's random state."""
    model = config.model
    return build_model(
        model.name,
        planes=planes,
        num_classes=num_classes,
        width=model.width,
        norm=model.norm,
        plane_mode=model.planes,
        stem_stride=model.stem_stride,
        target=model.target,
    )


def make_job(config: RunConfig, layout: Layout, files: EventFiles, index: EventIndex) -> Job:
    """Check what only shows when model, events and layout meet, without memory or time: the model runs on meta tensors.

    Raises:
        UserError: the model cannot take the images or gives no score a class, or the run has no steps.
    """
    shape = image_shape(config, files)
    rows, cols = preprocessing(config, shape).shape
    with torch.device("meta"):
        model = make_model(config, files.num_planes, len(index.class_names))
        images = torch.empty(config.data.batch, files.num_planes, rows, cols)
    try:
        scores = model.eval()(images)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"model {config.model.target or config.model.name}: cannot take images of {tuple(images.shape)} "
            f"(events, planes, wires, ticks): {error}"
        ) from None
    wanted = (config.data.batch, len(index.class_names))
    if getattr(scores, "shape", None) != wanted:
        raise UserError(
            f"model {config.model.target or config.model.name}: must give scores of shape {wanted} (events, classes), "
            f"gives {tuple(getattr(scores, 'shape', ())) or type(scores).__name__}"
        )
    plan_of(config, layout, model, (files.num_planes, rows, cols))
    if config.model.weights is not None:
        check_weights(model, Path(config.model.weights), "model.weights")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = max_steps(config, layout, len(index.positions("train")))
    return Job(layout, steps, files.num_planes, shape, index.class_names, parameters)


def plan_of(config: RunConfig, layout: Layout, model: nn.Module, image: tuple[int, int, int]) -> TilePlan:
    """How a run's model works on its tiles; UserError as `plan_tiles`, for what cannot."""
    return plan_tiles(model, layout, image, config.layout.gather_at, config.model.norm_scope)


def tile_shares(config: RunConfig, job: Job, precision: str) -> list[TileShare]:
    """What each tile of a group has of a step, row by row; maps travel in the `precision` of the computation."""
    with torch.device("meta"):
        model = make_model(config, job.planes, len(job.classes))
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    image = (job.planes, *preprocessing(config, job.image_shape).shape)
    return shares(plan_of(config, job.layout, model, image), model, job.layout)


def max_steps(config: RunConfig, layout: Layout, train_events: int) -> int:
    """Optimizer steps of the run: `train.max_steps` or `train.epochs`, whichever ends first."""
    global_batch = config.data.batch * config.train.accumulate * layout.data
    limits = [] if config.train.max_steps is None else [config.train.max_steps]
    if config.train.epochs is not None:
        limits.append(max(1, math.ceil(config.train.epochs * train_events / global_batch)))
    return min(limits)


def class_weights(config: RunConfig, index: EventIndex) -> torch.Tensor | None:
    """Factor of each class in the loss, with mean 1 over the training events; None for equal weights."""
    if config.train.class_weights == "none":
        return None
    counts = np.bincount(index.label[index.positions("train")], minlength=len(index.class_names))
    # a class that the split left out of training has no loss to weigh
    weights = counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts)
    return torch.tensor(weights, dtype=torch.float32)


def with_files(config: RunConfig, files: tuple[str, ...]) -> RunConfig:
    """The same run on other files."""
    return config.model_copy(update={"data": config.data.model_copy(update={"files": files})})


def absolute_paths(config: RunConfig, base: Path) -> RunConfig:
    """The same run with paths that hold from any working directory."""

    def absolute(name: str) -> str:
        return os.path.normpath(base / Path(name).expanduser())

    if config.model.weights is not None:
        weights = {"weights": absolute(config.model.weights)}
        config = config.model_copy(update={"model": config.model.model_copy(update=weights)})
    return with_files(config, tuple(absolute(name) for name in config.data.files))
