"""The run configuration: one frozen, strict tree for everything about a run for which DeepSpeed has no key.

Validation reads no file and imports no torch, so a configuration can be checked on a login node. Settings for which
DeepSpeed has a key (optimizer, scheduler, precision, clipping, ZeRO, offload, monitors) live in a JSON of `ds_configs/`
instead, which `train.ds_config` names, so that every setting has one owner. Rejected: hydra, and trees of dataclasses
that run code, because a strict pydantic tree reports every problem at once with its path.
"""

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from lartpc_ds.config.batch import BatchConfig
from lartpc_ds.config.launch import LaunchConfig
from lartpc_ds.config.section import NonNegative, Positive, Section, Share
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = [
    "BatchConfig",
    "DataConfig",
    "LaunchConfig",
    "LayoutConfig",
    "MemoryConfig",
    "ModelConfig",
    "Recompute",
    "RunConfig",
    "SimulateConfig",
    "SplitConfig",
    "TrainConfig",
]


class SplitConfig(Section):
    """Shares of the events, which sum to 1; the split of an event depends only on its identity and on `data.seed`."""

    train: Share = 0.8
    validation: Share = 0.2
    test: Share = 0.0

    @model_validator(mode="after")
    def _sum(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, they are {total:g}")
        if self.train == 0:
            raise ValueError("train must be above 0")
        return self


class SimulateConfig(Section):
    """The events that are simulated into the run folder when `data.files` is empty."""

    events: Positive = 1000
    momentum: tuple[float, float] = (0.2, 1.0)
    """[low, high] of the momentum in GeV/c, which is drawn uniformly between the two."""
    vertex: tuple[tuple[Share, Share], tuple[Share, Share], tuple[Share, Share]] = ((0.0, 1.0),) * 3
    """The place where particles start: [low, high] of x (drift), y and z (beam) as shares of the active volume."""
    angle: Annotated[float, Field(gt=0, le=180)] = 180.0
    """The largest angle in degrees between a particle and the beam (z); with 180 all directions are equally likely."""
    seed: NonNegative = 1

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.momentum
        if not 0 < low <= high:
            raise ValueError(f"momentum must be [low, high] with 0 < low <= high, in GeV/c, is [{low:g}, {high:g}]")
        for axis, (low, high) in zip("xyz", self.vertex, strict=True):
            if low > high:
                raise ValueError(f"vertex: {axis} must be [low, high] with low <= high, is [{low:g}, {high:g}]")
        return self


_OF_EVENT_FILES = (
    *("files", "format", "product", "truth", "labels", "classes", "duplicates", "detector", "downsample", "threshold"),
    *("isolated", "saturate", "simulate"),
)


class DataConfig(Section):
    """The events, their truth, and how they become images; or images of the user's own."""

    target: str | None = None
    """`my_pkg.module:name`, an object with images of your own, which are used instead of event files. Its attributes
    are those of `lartpc_ds.data.source.Images`. It excludes `files` and every key about how events become images and
    labels."""
    files: tuple[str, ...] = ()
    """Paths or globs of event files; if there are none, events are simulated (see `data.simulate`)."""
    format: Literal["auto", "larcv3"] = "auto"
    product: str = "auto"
    """The name of the wire images in a file: `sparse2d_<product>_group`."""
    truth: str = "auto"
    """The name of the truth particles in a file: `particle_<truth>_group`."""
    labels: Literal["particle", "neutrino"] = "particle"
    classes: tuple[str, ...] | dict[str, tuple[int, ...]] = ("electron", "gamma", "muon", "pion", "kaon")
    """The names of species (or nue, numu, nc, cosmic), or a table of name = list of pdg codes."""
    duplicates: Literal["error", "keep", "drop"] = "error"
    """What to do about events that repeat another, by run, subrun and event or pixel by pixel: `error` refuses the run,
    `keep` uses all of them in the split of the first, `drop` uses only the first."""
    split: SplitConfig = SplitConfig()
    detector: str = "auto"
    """The detector, which decides the image size; with `auto` it is the most wires and ticks of any plane in the
    files."""
    downsample: Positive | tuple[Positive, Positive] = 1
    """Blocks of this many (wires, ticks) are summed into one pixel; 1 is full resolution."""
    threshold: float = 0.0
    """Pixels below this value become 0 after downsampling."""
    isolated: Annotated[int, Field(ge=0, le=25)] = 0
    """After `threshold`, pixels that are not 0 become 0 if fewer than this many pixels of the 5 x 5 around them,
    themselves included, are not 0. It counts in the downsampled image, per plane; 0 is off."""
    saturate: Annotated[float, Field(gt=0)] | None = None
    """Pixels above this value are set to it after downsampling."""
    batch: Positive = 1
    """The micro-batch: the number of events per tile group in each micro-step."""
    workers: NonNegative = 0
    """The number of reader processes per rank; with 0 the training process reads."""
    seed: NonNegative = 0
    """The seed of the split, of the order of events, and of `flip` and `shift`."""
    flip: Literal[False, True, "wires", "ticks", "both"] = False
    """Whether training mirrors the wires (rows) or the ticks (columns) of an event, in all planes, with probability
    1/2; `both`, or true, mirrors each independently. For a beam only `ticks` is physical (docs/events.md)."""
    shift: tuple[NonNegative, NonNegative] = (0, 0)
    """The most (rows, columns) by which training moves an event either way; pixels that come in are 0."""
    simulate: SimulateConfig = SimulateConfig()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in _OF_EVENT_FILES if getattr(self, name) != type(self).model_fields[name].default]
        if self.target is not None and given:
            raise ValueError(
                f"target = {self.target!r} brings images of your own, so {', '.join(given)} would have no effect; "
                "remove them, or remove data.target to read event files"
            )
        return self

    @property
    def downsample_factors(self) -> tuple[int, int]:
        """The numbers of (wires, ticks) that are summed into one pixel."""
        return (self.downsample, self.downsample) if isinstance(self.downsample, int) else self.downsample


class ModelConfig(Section):
    """The network: its name, or the path of a function that makes it."""

    name: str = "resnet18"
    target: str | None = None
    """`my_pkg.module:function`, which is called as function(planes=..., num_classes=...) and replaces `name`."""
    weights: str | None = None
    """The path of a `model.pt` whose weights the training starts from."""
    width: Positive | None = None
    """The number of channels of the first stage; by default the network's own."""
    norm: Literal["batch", "group", "layer"] | None = None
    """The kind of norm; `layer` acts on each pixel over its channels. By default it is the network's own."""
    stem_stride: tuple[Positive, Positive] | None = None
    """The stride in (wires, ticks) of the first convolution of a ResNet; by default 2 x 2."""
    norm_scope: Literal["tiles", "all"] = "tiles"
    """Whether batch statistics are taken over the tiles of one group, or over all data ranks as well."""
    planes: Literal["stacked", "towers"] = "stacked"
    """Whether wire planes are input channels, or go through towers that share weights and are joined late."""


class LayoutConfig(Section):
    """How ranks share the work: layers over `pipe`, events over `data`, the image over `rows` and `cols`."""

    pipe: Positive = 1
    """The number of pipeline stages, each of which has consecutive blocks of the model."""
    cuts: Literal["balanced", "parameters", "uniform"] | tuple[str, ...] = "balanced"
    """Where stages begin: `balanced` makes the slowest stage fast, `parameters` evens out weights and `uniform` the
    number of blocks. Otherwise it is the names of the blocks at which the second and later stages begin."""
    data: Positive | None = None
    """The number of tile groups; by default the ranks that the other axes leave."""
    rows: Positive = 1
    """The number of tiles along the wires of an event."""
    cols: Positive = 1
    """The number of tiles along the ticks of an event."""
    gather_at: str = "auto"
    """The block from which on every tile rank runs the whole image, after it has gathered the block's input: its name,
    `never`, or `auto`, the last block before tiles become too thin for their halos."""
    overlap: bool = True
    """Whether a convolution computes its interior while its halo is sent."""

    @model_validator(mode="after")
    def _one_cut_a_stage(self) -> Self:
        if not isinstance(self.cuts, str) and len(self.cuts) != self.pipe - 1:
            raise ValueError(
                f"cuts = {list(self.cuts)} begins {len(self.cuts)} stage(s) after the first, but pipe = {self.pipe}; "
                f"name {self.pipe - 1} block(s), or set pipe = {len(self.cuts) + 1}"
            )
        return self

    def fit(self, devices: int, source: str) -> Layout:
        """The layout of these axes on `devices` ranks, a number that `source` gave.

        Raises:
            UserError: the product of the axes is not `devices`.
        """
        return Layout.fit(devices, pipe=self.pipe, data=self.data, rows=self.rows, cols=self.cols, source=source)


Recompute = Literal["none", "block", "auto"]
"""Which parts of a network keep their inputs only and run once more in the backward pass."""


class MemoryConfig(Section):
    """Which activations of a step are kept; every combination gives the same numbers."""

    recompute: Recompute = "none"
    """With `block` only the input of each block is kept, and the block runs once more in the backward pass. `auto`
    does so for the micro-batches that would not fit in memory otherwise, and needs `lit_block` (docs/lit.md)."""
    lean_norm: bool = False
    """Whether one map of every norm and ReLU is kept instead of two, and each choice of a pool in one byte."""
    stream_strips: Positive = 1
    """The number of strips of rows in which the front of the network runs one after the other, to keep only its
    output."""
    stream_until: str = "auto"
    """The name of the first block after that front, or `auto`."""
    lit_block: Literal["auto"] | NonNegative = 0
    """The side in pixels of the patches of which only distinct ones are computed: dark patches are computed once. With
    0 whole maps are computed; `auto` is 32. It must be a multiple of the network's strides (docs/lit.md)."""
    lit_until: str = "auto"
    """The name of the first block that computes whole maps, `never`, or `auto`: the cheapest one for each
    micro-batch. With pipeline stages it lies in the first stage, or is the first block of the second."""


class TrainConfig(Section):
    """The length of the training, its learning rate, and how often it evaluates and saves."""

    ds_config: str = "zero0_bf16"
    """The name of a file in `ds_configs/`, or a path. ZeRO shards weights, of which a convolutional network has few."""
    max_steps: Positive | None = None
    """The number of optimizer steps."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """The number of passes over the training events; of `max_steps` and `epochs` the one that ends first counts."""
    accumulate: Positive = 1
    """The number of micro-steps per optimizer step."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "sqrt"
    """The law by which the learning rate of the JSON grows with the global batch (arXiv:1706.02677,
    arXiv:1404.5997)."""
    lr_reference_batch: Positive = 16
    """The global batch, in events, for which the learning rate of the JSON is meant."""
    class_weights: Literal["none", "balanced"] = "none"
    """With `balanced` the loss of an event is weighted by 1 / share of its class."""
    loss_target: str | None = None
    """`my_pkg.module:function`, which replaces cross entropy: called as function(outputs, targets) on the part of this
    rank, it returns two scalar tensors, (total, weight). The loss of a micro-batch is the sum of totals over the sum of
    weights."""
    eval_every: NonNegative = 0
    """The number of optimizer steps between evaluations of the whole validation split; with 0 it is evaluated at the
    end."""
    checkpoint_every: NonNegative = 0
    """The number of optimizer steps between checkpoints; with 0 there is one at each best evaluation and at the end."""
    seed: NonNegative = 0

    @model_validator(mode="after")
    def _length(self) -> Self:
        if self.max_steps is None and self.epochs is None:
            raise ValueError("give max_steps, epochs or both")
        return self

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        if self.loss_target is not None and self.class_weights != "none":
            raise ValueError(
                f"class_weights = {self.class_weights!r} would have no effect on loss_target = {self.loss_target!r}; "
                "weigh inside your loss and remove train.class_weights"
            )
        return self


class RunConfig(Section):
    """The configuration of a whole run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    layout: LayoutConfig = LayoutConfig()
    memory: MemoryConfig = MemoryConfig()
    train: TrainConfig
    batch: BatchConfig = BatchConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.memory.stream_strips > 1 and self.layout.pipe > 1:
            raise ValueError(
                f"memory.stream_strips = {self.memory.stream_strips}: streaming needs layout.pipe = 1, which is "
                f"{self.layout.pipe}; cut images into tiles (layout.rows, layout.cols) instead, or leave one out"
            )
        if self.memory.lit_block != 0 and self.memory.stream_strips > 1:
            raise ValueError(
                f"memory.lit_block = {self.memory.lit_block!r} computes only what is lit, and memory.stream_strips = "
                f"{self.memory.stream_strips} computes all of it in strips; take one: set memory.lit_block = 0 or "
                "memory.stream_strips = 1"
            )
        if self.memory.recompute == "auto":
            self._check_recomputed_now_and_then()
        if self.launch.stage_to is not None and self.data.target is not None:
            raise ValueError(
                f"launch.stage_to = {self.launch.stage_to!r} copies event files, but data.target = "
                f"{self.data.target!r} has none that are known; remove launch.stage_to"
            )
        return self

    def _check_recomputed_now_and_then(self) -> None:
        if self.memory.lit_block == 0:
            raise ValueError(
                "memory.recompute = 'auto' is for steps whose memory depends on their events; set memory.lit_block, or "
                "memory.recompute = 'none' or 'block'"
            )
        if self.model.norm_scope == "all":
            raise ValueError(
                "memory.recompute = 'auto' with model.norm_scope = 'all': each rank decides for its own events, and "
                "statistics of all ranks need the same blocks on each; set memory.recompute = 'none' or 'block', or "
                "model.norm_scope = 'tiles'"
            )

    @classmethod
    def parse(cls, tree: dict[str, Any], source: str) -> Self:
        """Build the configuration from plain TOML data, or report every problem at once.

        Raises:
            UserError: naming `source` and every problem with its key, value and what is allowed.
        """
        try:
            # JSON mode takes arrays, which TOML has, where the tree has tuples; scalars stay strict
            return cls.model_validate_json(_as_json(tree), strict=True)
        except ValidationError as error:
            raise UserError(f"{source}:\n{_explain(error, cls)}") from None


def _as_json(tree: dict[str, Any]) -> str:
    # JSON has no dates; a date becomes {}, for which pydantic names the type that the key wants
    return json.dumps(tree, default=lambda _: {})


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        # pydantic adds the member of a union that it tried, such as `tuple[str, ...]`, which no user has written
        path = [str(part) for part in problem["loc"] if re.fullmatch(r"\w+", str(part))]
        message = problem["msg"].removeprefix("Value error, ")
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            message = f"unknown key; allowed here: {', '.join(_keys_at(model, path[:-1]))}"
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
            message = f"{message} (given: {problem['input']!r})"
        lines.append(f"  {key}: {message}")
    return "\n".join(lines)


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        section = model.model_fields[part].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        model = section
    return list(model.model_fields)
