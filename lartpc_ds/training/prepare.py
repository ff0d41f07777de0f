"""What is decided before the first rank of a run starts, and what the ranks make of it.

`make_job` turns checked configurations into a `Job` (a few integers and names), and raises a UserError for whatever
cannot work. The run folder carries the job and the table of events to the ranks; ranks decide nothing by themselves.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import nn

from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.stages import StageShare, block_costs, check_zero, cut_rates, plan_stages, stage_shares
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.source import Source
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.memory.lit_plan import LitPlan, plan_lit
from lartpc_ds.exact.memory.recompute import check_blocks
from lartpc_ds.exact.memory.strip_plan import StripPlan, plan_strips
from lartpc_ds.exact.spatialize import TilePlan, TileShare, plan_tiles, shares
from lartpc_ds.exact.trace.dry_run import built_without_memory, dry_run
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.models.build import blocks, build_model
from lartpc_ds.training.checkpoint_files import check_weights_file
from lartpc_ds.training.losses import Loss, check_loss, cross_entropy, import_loss
from lartpc_ds.training.sources import preprocessing
from lartpc_ds.training.weights import check_weights

__all__ = [
    "Job",
    "Run",
    "absolute_paths",
    "class_weights",
    "job_lit",
    "job_strips",
    "lit_before",
    "lit_of",
    "make_job",
    "make_loss",
    "make_model",
    "plan_of",
    "stages_of",
    "strips_of",
    "tile_shares",
    "with_files",
    "without_data",
]


@dataclass(frozen=True, slots=True)
class Job:
    """What the ranks need beside the configurations: `job.json` of the run folder.

    `planes` are the channels of a user's images; `image_shape` is (wires, ticks) before downsampling, or a user's rows
    and columns; `task` is one of `data.source.TASKS`.
    """

    layout: Layout
    max_steps: int
    planes: int
    image_shape: tuple[int, int]
    classes: tuple[str, ...]
    parameters: int
    task: str = "events"
    stages: Bounds = ()
    """Stage s of a pipeline has the blocks [B_s, B_s+1) of the network; () means no pipeline."""

    def as_dict(self) -> dict[str, Any]:
        """The job as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`, also of a tree that has gone through JSON."""
        return TypeAdapter(cls).validate_python(tree)


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its folder holds it: all that a rank knows of it before the engine exists."""

    folder: RunFolder
    config: RunConfig
    job: Job
    index: EventIndex
    name: str
    """The digest in `files.json` by which a run is told from others."""
    facts: dict[str, Any]
    """Plain data that goes to every manifest, so that a checkpoint says what it belongs to."""

    @property
    def train_costs(self) -> NDArray[np.float64] | None:
        """The predicted cost of a step on each training event; None where all cost the same."""
        return None if self.index.cost is None else self.index.cost[self.index.positions("train")]


def make_model(config: RunConfig, planes: int, num_classes: int) -> nn.Module:
    """The network of a run, initialised from torch's random state."""
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


def make_job(
    config: RunConfig,
    ds: DeepSpeedConfig,
    layout: Layout,
    source: Source,
    index: EventIndex,
    lit: LitPlan | None = None,
) -> Job:
    """Check what shows only when model, events and layout meet, and return what the ranks need to know.

    This costs neither memory nor much time, because the model runs on meta tensors. `lit` is what `lit_before` gave, if
    it was called.

    Raises:
        UserError: the model cannot take the images, gives no score per class or cannot be cut into stages; or the run
            has no steps.
    """
    check_zero(config, ds, layout)
    image = source.image_shape
    for axis, most, size in zip(("rows", "columns"), config.data.shift, image[1:], strict=True):
        if most >= size:
            raise UserError(f"data.shift = {list(config.data.shift)}: the image has {size} {axis}; shift by fewer")
    model = built_without_memory(lambda: make_model(config, image[0], len(index.class_names)))
    images = torch.empty(config.data.batch, *image, device="meta")
    scores = _scores(config, model, images, source.task, len(index.class_names))
    plan = plan_of(config, layout, model, image)
    if source.task == "pixels" and plan.output is not None and plan.output.dims != (2, 3):
        raise UserError(f"model {_name(config)}: its output is cut in dimensions {plan.output.dims}, expected (2, 3)")
    if source.task == "own" and layout.tiles > 1 and plan.output is not None and plan.output.bounds != plan.bounds:
        raise UserError(
            f"model {_name(config)}: its output is cut into tiles at {plan.output.bounds}, the images and their "
            f"targets at {plan.bounds}; only classes of pixels follow the output, so set layout.rows = layout.cols = 1"
        )
    strips = strips_of(config, layout, model.train(), image)
    stages = plan_stages(config, ds, layout, model, image, plan, cut_rates())
    if lit is None:
        lit_of(config, layout, model, image, stages)
    if config.memory.recompute != "none":
        front = [] if strips is None else [block for _, block in blocks(model)[: len(strips.front)]]
        check_blocks(model, image, [name for name, module in model.named_modules() if module in front] + plan.remade_at)
    if config.train.loss_target is not None:
        check_loss(config.train.loss_target, source, scores)
    if config.model.weights is not None:
        check_weights_file(Path(config.model.weights), "model.weights")
        check_weights(model, Path(config.model.weights), "model.weights")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = max_steps(config, layout, len(index.positions("train")))
    return Job(layout, steps, image[0], source.recorded_shape, index.class_names, parameters, source.task, stages)


def lit_before(config: RunConfig, ds: DeepSpeedConfig, layout: Layout, source: Source) -> LitPlan | None:
    """How a run will compute only what is lit, if it does; known before anyone has looked at its events.

    Raises:
        UserError: the model cannot take the images or cannot be cut into stages, or as `lit_of`.
    """
    if config.memory.lit_block == 0:
        return None
    model = built_without_memory(lambda: make_model(config, source.image_shape[0], len(source.classes)))
    image = source.image_shape
    _scores(config, model, torch.empty(config.data.batch, *image, device="meta"), source.task, len(source.classes))
    stages: Bounds = ()
    if layout.pipe > 1:
        stages = plan_stages(config, ds, layout, model, image, plan_of(config, layout, model, image), cut_rates())
    return lit_of(config, layout, model.train(), image, stages)


def _name(config: RunConfig) -> str:
    return config.model.target or config.model.name


_SCORES = {
    "events": ("(events, classes)", "scores per pixel need a class per pixel: data.target without labels"),
    "pixels": (
        "(events, classes, rows, columns)",
        "data.target has a class per pixel: take a network for dense prediction, or give labels",
    ),
}


def _scores(config: RunConfig, model: nn.Module, images: torch.Tensor, task: str, classes: int) -> torch.Tensor:
    """What the model gives for a batch; raises UserError if that does not fit the targets."""
    shape = tuple(images.shape)
    try:
        with dry_run(model):
            scores = model.eval()(images)
    except UserError as error:
        raise UserError(
            f"model {_name(config)}: cannot take images of {shape} (events, planes, wires, ticks): {error}"
        ) from None
    given = tuple(getattr(scores, "shape", ())) or type(scores).__name__
    wanted = (shape[0], classes, *(shape[2:] if task == "pixels" else ()))
    if isinstance(scores, torch.Tensor) and (task == "own" or given == wanted):
        return scores
    if task == "own":
        raise UserError(f"model {_name(config)}: must give one tensor, but gives {given}")
    names, other = _SCORES[task]
    hint = f"; {other}" if isinstance(scores, torch.Tensor) and scores.ndim != len(wanted) else ""
    raise UserError(f"model {_name(config)}: must give scores of shape {wanted} {names}, but gives {given}{hint}")


def make_loss(config: RunConfig, job: Job, plan: TilePlan, index: EventIndex, tiles: Tiles) -> Loss:
    """What a rank of the run minimises, and how it counts."""
    target = config.train.loss_target
    function = cross_entropy(class_weights(config, index)) if target is None else import_loss(target)
    part = plan.tile(tiles.row, tiles.col) if job.task == "pixels" and plan.output is None else None
    shared = job.task == "pixels" or plan.output is not None
    return Loss(function, job.task, tiles.group if shared else None, part)


def plan_of(config: RunConfig, layout: Layout, model: nn.Module, image: tuple[int, int, int]) -> TilePlan:
    """How a run's model works on its tiles; raises what `plan_tiles` raises."""
    return plan_tiles(model, layout, image, config.layout.gather_at, config.model.norm_scope, config.memory.lean_norm)


def strips_of(config: RunConfig, layout: Layout, model: nn.Module, image: tuple[int, int, int]) -> StripPlan | None:
    """How a run's model streams its front, if it does.

    Raises:
        UserError: as `plan_strips`, or the layout does not allow it.
    """
    strips = config.memory.stream_strips
    if strips == 1:
        return None
    if layout.tiles > 1:
        raise UserError(
            f"memory.stream_strips = {strips} with layout.rows = {layout.rows}, cols = {layout.cols}: tiles cut an "
            "event in space, strips in time; take one: set memory.stream_strips = 1, or layout.rows = layout.cols = 1"
        )
    if layout.pipe > 1:
        raise UserError(
            f"memory.stream_strips = {strips} with layout.pipe = {layout.pipe}: a streamed front and the rest of the "
            "network share a device; set memory.stream_strips = 1 or layout.pipe = 1"
        )
    return plan_strips(model, strips, config.memory.stream_until, image)


def lit_of(
    config: RunConfig, layout: Layout, model: nn.Module, image: tuple[int, int, int], stages: Bounds = ()
) -> LitPlan | None:
    """How a run's model computes only what is lit, if it does; of pipeline `stages` only the first one does.

    Raises:
        UserError: as `plan_lit`, or the layout does not allow it.
    """
    pixels = config.memory.lit_block
    if pixels == 0:
        return None
    if layout.tiles > 1:
        raise UserError(
            f"memory.lit_block = {pixels!r} with layout.rows = {layout.rows}, cols = {layout.cols}: a tile would wait "
            "for the tile with most of the charge; take one: set memory.lit_block = 0, or layout.rows = layout.cols = 1"
        )
    plan = plan_lit(model, pixels, config.memory.lit_until, image)
    return plan if layout.pipe == 1 else _in_first_stage(plan, layout, stages[1])


def _in_first_stage(plan: LitPlan, layout: Layout, cut: int) -> LitPlan:
    """The same plan for at most the first `cut` blocks; raises UserError if whole maps begin later."""
    names = [block.name for block in plan.blocks]
    if plan.until not in ("auto", *names[1 : cut + 1]):
        later = f", or name in layout.cuts a second stage that begins at {plan.until} or later"
        raise UserError(
            f"memory.lit_until = {plan.until!r} with layout.pipe = {layout.pipe}: only the first stage runs on "
            f"patches, and the second begins at {names[cut]}; set memory.lit_until to one of auto, "
            f"{', '.join(names[1 : cut + 1])}{later if plan.until in names else ''}, or set layout.pipe = 1"
        )
    return replace(plan, covered=min(plan.covered, cut))


def job_lit(config: RunConfig, job: Job) -> LitPlan | None:
    """How a checked run computes only what is lit, if it does."""
    return lit_of(config, job.layout, *without_data(config, job), job.stages)


def tile_shares(config: RunConfig, job: Job, precision: str) -> list[TileShare]:
    """The share of each tile of a group in a step, row by row; maps travel in the `precision` of the computation."""
    model, image = without_data(config, job)
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    return shares(plan_of(config, job.layout, model, image), model, job.layout)


def job_strips(config: RunConfig, job: Job) -> StripPlan | None:
    """How a checked run streams its front, if it does."""
    return strips_of(config, job.layout, *without_data(config, job))


def without_data(config: RunConfig, job: Job) -> tuple[nn.Module, tuple[int, int, int]]:
    """A run's model on the meta device, and its image: (channels, rows, columns)."""
    model = built_without_memory(lambda: make_model(config, job.planes, len(job.classes)))
    return model, (job.planes, *preprocessing(config, job.image_shape).shape)


def stages_of(config: RunConfig, ds: DeepSpeedConfig, job: Job) -> list[StageShare]:
    """The share of each pipeline stage in a step; empty where the model is not cut."""
    if not job.stages:
        return []
    model, image = without_data(config, job)
    costs = block_costs(config, ds, job.layout, model, image, cut_rates())
    return stage_shares(costs, job.stages, config.train.accumulate)


def max_steps(config: RunConfig, layout: Layout, train_events: int) -> int:
    """The number of optimizer steps of the run: `train.max_steps` or `train.epochs`, whichever ends first."""
    global_batch = config.data.batch * config.train.accumulate * layout.data
    limits = [] if config.train.max_steps is None else [config.train.max_steps]
    if config.train.epochs is not None:
        limits.append(max(1, math.ceil(config.train.epochs * train_events / global_batch)))
    return min(limits)


def class_weights(config: RunConfig, index: EventIndex) -> torch.Tensor | None:
    """The factor of each class in the loss, with mean 1 over the training events; None for equal weights."""
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
    """The same run with paths that are valid from any working directory."""

    def absolute(name: str) -> str:
        return os.path.normpath(base / Path(name).expanduser())

    if config.model.weights is not None:
        weights = {"weights": absolute(config.model.weights)}
        config = config.model_copy(update={"model": config.model.model_copy(update=weights)})
    return with_files(config, tuple(absolute(name) for name in config.data.files))
