"""The run configuration: one frozen, strict tree that says everything about a run that DeepSpeed has no key for.

Every field is inert: validation reads no file and imports no torch, so a config can be checked on a login node. What
DeepSpeed has a key for (optimizer, scheduler, precision, clipping, ZeRO, offload, monitors) lives in a `ds_configs/`
JSON instead, which `train.ds_config` names; a knob has one owner. Rejected: hydra and dataclass trees with `exec`,
because a strict pydantic tree reports every problem at once with its path.
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
    "RunConfig",
    "SimulateConfig",
    "SplitConfig",
    "TrainConfig",
]


class SplitConfig(Section):
    """Shares of the events; they sum to 1 and an event's part depends on its identity and `data.seed` alone."""

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
    """The embedded default: events simulated into the run folder when `data.files` is empty."""

    events: Positive = 1000
    momentum: tuple[float, float] = (0.2, 1.0)
    """GeV/c, drawn uniformly between the two."""
    vertex: tuple[tuple[Share, Share], tuple[Share, Share], tuple[Share, Share]] = ((0.0, 1.0),) * 3
    """Where particles start: [low, high] of x (the drift), y and z (the beam) as shares of the active volume."""
    angle: Annotated[float, Field(gt=0, le=180)] = 180.0
    """Largest angle in degrees between a particle's direction and the beam (z); 180: all directions alike."""
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
    *("saturate", "simulate"),
)


class DataConfig(Section):
    """Which events, which truth, and how they become images; or images of the user's own."""

    target: str | None = None
    """`my_pkg.module:name`: images of your own, instead of event files; `lartpc_ds.data.source.Images` says what it
    must have. Excludes `files` and every key that says how events become images and labels."""
    files: tuple[str, ...] = ()
    """Paths or globs; empty: simulate (see `data.simulate`)."""
    format: Literal["auto", "larcv3"] = "auto"
    product: str = "auto"
    """Name of the wire images in the file: `sparse2d_<product>_group`."""
    truth: str = "auto"
    """Name of the truth particles in the file: `particle_<truth>_group`."""
    labels: Literal["particle", "neutrino"] = "particle"
    classes: tuple[str, ...] | dict[str, tuple[int, ...]] = ("electron", "gamma", "muon", "pion", "kaon")
    """Names of species (or nue, numu, nc, cosmic), or a table of name = list of pdg codes."""
    duplicates: Literal["error", "keep", "drop"] = "error"
    """Events that repeat another, by run, subrun and event or pixel by pixel: `error` refuses the run, `keep` uses all,
    each in the split of the first, `drop` uses the first alone."""
    split: SplitConfig = SplitConfig()
    detector: str = "auto"
    """Decides the image size; `auto` takes it from the file: the most wires and ticks of any plane."""
    downsample: Positive | tuple[Positive, Positive] = 1
    """Sums blocks of so many (wires, ticks); 1 is full resolution."""
    threshold: float = 0.0
    """Pixels below it, after downsampling, become 0."""
    saturate: Annotated[float, Field(gt=0)] | None = None
    """Pixels above it, after downsampling, become it."""
    batch: Positive = 1
    """Micro-batch: events a tile group a micro-step."""
    workers: NonNegative = 0
    """Reader processes a rank; 0 reads in the training process."""
    seed: NonNegative = 0
    """Of the split, of the order of events and of `flip` and `shift`."""
    flip: Literal[False, True, "wires", "ticks", "both"] = False
    """In training, mirror the wires (rows) or the ticks (columns) of an event with probability 1/2, all planes alike;
    `both`, or true, does each independently of the other. For a beam only `ticks` is physical (docs/events.md)."""
    shift: tuple[NonNegative, NonNegative] = (0, 0)
    """In training, move every event by up to so many (rows, columns) either way; what comes in is 0."""
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
        """(wires, ticks)."""
        return (self.downsample, self.downsample) if isinstance(self.downsample, int) else self.downsample


class ModelConfig(Section):
    """The network, by name or by the path of a function that makes one."""

    name: str = "resnet18"
    target: str | None = None
    """`my_pkg.module:function`, called as function(planes=..., num_classes=...); replaces `name`."""
    weights: str | None = None
    """A `model.pt` to start from."""
    width: Positive | None = None
    """Channels of the first stage; none: the network's own."""
    norm: Literal["batch", "group", "layer"] | None = None
    """`layer` acts per pixel over channels; none: the network's own."""
    stem_stride: tuple[Positive, Positive] | None = None
    """(wires, ticks) of a ResNet's first convolution; none: 2 x 2."""
    norm_scope: Literal["tiles", "all"] = "tiles"
    """Batch statistics over the tiles of one group's events, or over all data ranks too."""
    planes: Literal["stacked", "towers"] = "stacked"
    """Wire planes as input channels, or through shared-weight towers joined late."""


class LayoutConfig(Section):
    """How ranks share the work: layers over `pipe`, events over `data`, images over `rows` and `cols`."""

    pipe: Positive = 1
    """Pipeline stages: each has a run of the model's blocks."""
    cuts: Literal["balanced", "parameters", "uniform"] | tuple[str, ...] = "balanced"
    """Where stages begin: `balanced` makes the slowest stage fast, `parameters` and `uniform` even out weights and
    blocks; or the names of the blocks at which the second and later stages begin."""
    data: Positive | None = None
    """Tile groups; none: all the ranks that the other axes leave."""
    rows: Positive = 1
    """Tiles along the wires of an event."""
    cols: Positive = 1
    """Tiles along its ticks."""
    gather_at: str = "auto"
    """The block whose input every tile rank gathers, to run whole from there on: its name, `never`, or `auto`: the last
    block before tiles get thinner than their halos are worth."""
    overlap: bool = True
    """Compute a convolution's interior while its halo is under way."""

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
            UserError: the axes do not multiply to `devices`.
        """
        return Layout.fit(devices, pipe=self.pipe, data=self.data, rows=self.rows, cols=self.cols, source=source)


class MemoryConfig(Section):
    """What is kept of a step's activations; every combination gives the same numbers."""

    recompute: Literal["none", "block"] = "none"
    """`block`: keep each block's input only, and run the block once more in the backward pass."""
    lean_norm: bool = False
    """Keep one map of every norm and ReLU instead of two, and pools' choices in a byte each."""
    stream_strips: Positive = 1
    """Run the front of the network in so many strips of rows, one after the other, keeping only its small output."""
    stream_until: str = "auto"
    """The first block after that front: its name, or `auto`."""


class TrainConfig(Section):
    """How long, how fast, how often."""

    ds_config: str = "zero0_bf16"
    """Name of a file in `ds_configs/` or a path; ZeRO shards weights, of which a network of convolutions has few."""
    max_steps: Positive | None = None
    """Optimizer steps."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training events; of `max_steps` and `epochs` the one that ends first counts."""
    accumulate: Positive = 1
    """Micro-steps an optimizer step."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "sqrt"
    """Law by which the JSON's learning rate grows with the global batch (arXiv:1706.02677, arXiv:1404.5997)."""
    lr_reference_batch: Positive = 16
    """Global batch, in events, for which the JSON's learning rate is meant."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs the loss of an event by 1 / share of its class."""
    loss_target: str | None = None
    """`my_pkg.module:function` in place of cross entropy: called as function(outputs, targets) on this rank's part, it
    returns (total, weight), two scalar tensors; the loss of a micro-batch is the sum of totals over that of weights."""
    eval_every: NonNegative = 0
    """Optimizer steps between evaluations on the whole validation split; 0: once, at the end."""
    checkpoint_every: NonNegative = 0
    """Optimizer steps between checkpoints; 0: at each best evaluation and at the end."""
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
    """A whole run."""

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
        if self.launch.stage_to is not None and self.data.target is not None:
            raise ValueError(
                f"launch.stage_to = {self.launch.stage_to!r} copies event files, but data.target = "
                f"{self.data.target!r} has none that are known; remove launch.stage_to"
            )
        return self

    @classmethod
    def parse(cls, tree: dict[str, Any], source: str) -> Self:
        """Build from plain TOML data; every problem at once, each with its key, value and what is allowed.

        Raises:
            UserError: naming `source` and all problems.
        """
        try:
            # lax containers: TOML has arrays where the tree has tuples; scalars stay strict
            return cls.model_validate_json(_as_json(tree), strict=True)
        except ValidationError as error:
            raise UserError(f"{source}:\n{_explain(error, cls)}") from None


def _as_json(tree: dict[str, Any]) -> str:
    # TOML's dates have no JSON; as {} they meet the message of whatever type the key wants
    return json.dumps(tree, default=lambda _: {})


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        # pydantic adds the member of a union that it tried, such as `tuple[str, ...]`; no user wrote that
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
