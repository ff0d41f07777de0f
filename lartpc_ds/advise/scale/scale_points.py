"""The points of a scaling study: which layout, batch and accumulation a number of ranks has in each series.

The mode decides the only axis of the layout that grows; all others are 1, because two axes that grow together would
hide which of them costs what. Strong series keep the global batch by micro-batches and not by larger batches, so a rank
needs as much memory for activations at every size.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

from pydantic import TypeAdapter

from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import MODELS
from lartpc_ds.report.scaling import Mode, Point, Scaling

__all__ = [
    "THREADS",
    "ScaleTrial",
    "chosen_scalings",
    "grid_of",
    "make_trials",
    "parse_models",
    "parse_modes",
    "parse_ranks",
]

THREADS = "OMP_NUM_THREADS"
"""The environment variable that gives ranks their number of threads."""
_MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class ScaleTrial:
    """One point of a study, and the configurations of its job; points of two series may have the same job."""

    point: Point
    config: RunConfig
    """The configuration of the whole run, not of the short one."""
    ds: AskedConfig

    @property
    def name(self) -> str:
        """The job in a few words."""
        layout = self.point.layout
        shared = {
            "tile groups": layout.data,
            f"({layout.rows} x {layout.cols}) tiles": layout.tiles,
            "stages": layout.pipe,
        }
        shape = next((f"{size} {word}" for word, size in shared.items() if size > 1), "1 rank")
        return f"{self.point.model}, {shape}, {self.point.global_batch} event(s) per step"

    @property
    def key(self) -> str:
        """A short name that only the same pair of configurations has."""
        text = json.dumps([self.config.model_dump(mode="json"), self.ds], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        config = self.config.model_dump(mode="json", exclude_none=True)
        return {"point": asdict(self.point), "config": config, "ds": self.ds}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], source: str) -> Self:
        """The inverse of `as_dict` after a way through JSON; UserError naming `source` for a bad configuration."""
        point = TypeAdapter(Point).validate_python(tree["point"])
        return cls(point, RunConfig.parse(tree["config"], source), tree["ds"])


def parse_ranks(text: str | None, available: int, most: int | None, source: str) -> tuple[int, ...]:
    """The numbers of `--ranks`, each once, in their order.

    Args:
        text: of the option; None: 1, 2 and 4, as far as they are available.
        available: how many devices there are.
        most: the largest number that is allowed; None: any.
        source: what sets this limit, in words for a message.

    Raises:
        UserError: not numbers from 1 to `most` between commas.
    """
    if text is None:
        return tuple(ranks for ranks in (1, 2, 4) if ranks <= available)
    try:
        ranks = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        ranks = ()
    if not ranks or ranks[0] < 1 or (most is not None and ranks[-1] > most):
        allowed = "from 1 up" if most is None else f"from 1 to {most}, as {source}"
        raise UserError(f"--ranks {text!r}: must be numbers of ranks between commas, {allowed}, such as 1,2")
    return ranks


def parse_modes(text: str) -> tuple[Mode, ...]:
    """The modes of `--mode`, each once.

    Raises:
        UserError: a word that is none of them.
    """
    words = [part.strip() for part in text.split(",")]
    if not {*words} <= {*_MODES, "all"}:
        raise UserError(f"--mode {text!r}: must be of data, tiles and pipe between commas, or all")
    return tuple(mode for mode in _MODES if mode in words or "all" in words)


def parse_models(text: str | None, config: RunConfig) -> tuple[str, ...]:
    """The networks of `--models`, each once; without the option the run's own.

    Raises:
        UserError: a network is unknown, or the run brings its own, which a name would not replace.
    """
    if text is None:
        return (config.model.target or config.model.name,)
    if config.model.target is not None:
        raise UserError(
            f"--models {text!r}: model.target = {config.model.target!r} builds the network of this run, whatever its "
            "name; leave --models out, or remove model.target"
        )
    models = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [model for model in models if model not in MODELS]:
        raise UserError(
            f"--models {text!r}: does not know {', '.join(map(repr, unknown))}; choose of {', '.join(MODELS)}, between "
            "commas"
        )
    return models


def chosen_scalings(weak: bool, strong: bool, modes: Sequence[Mode]) -> tuple[Scaling, ...]:
    """The scalings that are asked for; both if neither option is given.

    Raises:
        UserError: weak scaling alone, of a mode that has none.
    """
    if weak and not strong and (without := [mode for mode in modes if mode != "data"]):
        raise UserError(
            f"--weak with --mode {','.join(without)}: more tiles or stages share the same event, which does not grow, "
            "so they scale strongly only; take --strong instead, or --mode data"
        )
    scalings: dict[Scaling, bool] = {"weak": weak or not strong, "strong": strong or not weak}
    return tuple(scaling for scaling, asked in scalings.items() if asked)


def grid_of(tiles: int) -> tuple[int, int]:
    """The rows and columns of so many tiles, as square as can be, with more rows than columns."""
    cols = max(cols for cols in range(1, math.isqrt(tiles) + 1) if tiles % cols == 0)
    return tiles // cols, cols


def make_trials(
    config: RunConfig,
    ds: AskedConfig,
    *,
    models: Sequence[str],
    modes: Sequence[Mode],
    scalings: Sequence[Scaling],
    ranks: Sequence[int],
    threads: int | None,
) -> list[ScaleTrial]:
    """The points of all series, with the configurations of their jobs.

    Args:
        config: of the run.
        ds: its DeepSpeed JSON.
        models: the networks.
        modes: what more ranks share.
        scalings: what is fixed; tiles and stages have no weak series.
        ranks: the sizes, smallest first.
        threads: the threads of every rank; None: those that it has anyway.
    """
    if threads is not None and THREADS not in config.launch.forward:
        launch = {"environment": {**config.launch.environment, THREADS: str(threads)}}
        config = config.model_copy(update={"launch": config.launch.model_copy(update=launch)})
    trials = []
    for model in models:
        if config.model.target is None:
            named = config.model.model_copy(update={"name": model})
            config = config.model_copy(update={"model": named})
        for mode in modes:
            for scaling in scalings:
                if mode == "data" or scaling == "strong":
                    trials += [_trial(config, ds, model, mode, scaling, size, ranks, threads) for size in ranks]
    return trials


def _trial(
    config: RunConfig,
    ds: AskedConfig,
    model: str,
    mode: Mode,
    scaling: Scaling,
    size: int,
    ranks: Sequence[int],
    threads: int | None,
) -> ScaleTrial:
    layout, accumulate = _shared(mode, scaling, size, ranks, config.train.accumulate)
    point = Point(model, mode, scaling, size, layout, config.data.batch, accumulate, threads)
    axes: dict[str, Any] = asdict(layout)
    if not isinstance(config.layout.cuts, str) and len(config.layout.cuts) != layout.pipe - 1:
        axes["cuts"] = "balanced"  # names of blocks are for one number of stages
    changed = {
        "layout": config.layout.model_copy(update=axes),
        "train": config.train.model_copy(update={"accumulate": accumulate}),
    }
    return ScaleTrial(point, config.model_copy(update=changed), ds)


def _shared(mode: Mode, scaling: Scaling, size: int, ranks: Sequence[int], accumulate: int) -> tuple[Layout, int]:
    """The layout of so many ranks, and the micro-batches of a step."""
    if mode == "tiles":
        rows, cols = grid_of(size)
        return Layout(rows=rows, cols=cols), accumulate
    if mode == "pipe":
        return Layout(pipe=size), max(accumulate, ranks[-1])  # with fewer micro-batches stages would have nothing to do
    if scaling == "weak":
        return Layout(data=size), accumulate
    # the global batch of the largest size, or of the next one that every size divides
    return Layout(data=size), accumulate * math.lcm(*ranks) // size
