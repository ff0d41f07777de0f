"""The DeepSpeed JSON: its types, its checks at every level, and its completion with what the layout decides.

DeepSpeed ignores unknown keys at the top level and in its hand-written sections, and clips gradients at 1.0 when
`gradient_clipping` is absent (DeepSpeed 0.19.8, deepspeed/runtime/constants.py). So a typing mistake would change the
training silently. Sections for which DeepSpeed has pydantic models are checked by those, and the others by the types
below, which also tell mypy what the JSON contains.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = [
    "AskedConfig",
    "CompletedConfig",
    "DeepSpeedConfig",
    "check",
    "compiles_adam",
    "complete",
    "find",
    "offload_device",
    "precision",
    "read",
    "uncompleted",
]

_PACKAGE = Path(__file__).parents[1]
# an installed wheel carries ds_configs inside the package, a checkout beside it
_FOLDERS = (_PACKAGE / "ds_configs", _PACKAGE.parent / "ds_configs")
_OWNERS = {
    "train_batch_size": "data.batch, train.accumulate and layout.data",
    "train_micro_batch_size_per_gpu": "data.batch",
    "gradient_accumulation_steps": "train.accumulate",
    "activation_checkpointing": "the run TOML (recomputation around blocks)",
    "pipeline": "layout.pipe",
    "bf16": "torch_autocast with dtype bfloat16 (the engine's own bf16 fails on BatchNorm)",
    "fp16": "torch_autocast with dtype float16 (the engine's own fp16 fails on BatchNorm)",
}
_FILLED = ("total_num_steps", "warmup_num_steps")
_RATES = ("warmup_max_lr", "cycle_max_lr")
_BATCH = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
_ADAM = {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode"}
_STRICT = with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


@_STRICT
class NamedConfig(TypedDict):
    """An optimizer or a scheduler: its name, and the arguments that DeepSpeed makes it with."""

    type: str
    params: dict[str, Any]


@_STRICT
class AutocastConfig(TypedDict):
    """The precision in which the network computes."""

    enabled: bool
    dtype: Literal["bfloat16", "float16"]
    lower_precision_safe_modules: list[str]


@_STRICT
class FlopsProfilerConfig(TypedDict, total=False):
    """The profiler of operations in DeepSpeed; a key that is left out has DeepSpeed's default."""

    enabled: Required[bool]
    recompute_fwd_factor: float
    profile_step: int
    module_depth: int
    top_modules: int
    detailed: bool
    output_file: str | None


class DeepSpeedConfig(TypedDict):
    """The keys that a DeepSpeed JSON has both before and after it is completed."""

    optimizer: NamedConfig
    gradient_clipping: Annotated[float, Field(ge=0)]
    torch_autocast: AutocastConfig
    communication_data_type: Literal["fp32", "fp16", "bf16"]
    zero_optimization: dict[str, Any]
    zero_allow_untested_optimizer: bool
    zero_force_ds_cpu_optimizer: bool
    steps_per_print: Annotated[int, Field(ge=1)]
    wall_clock_breakdown: bool
    memory_breakdown: bool
    tensorboard: NotRequired[dict[str, Any]]
    csv_monitor: NotRequired[dict[str, Any]]
    wandb: NotRequired[dict[str, Any]]
    comet: NotRequired[dict[str, Any]]
    comms_logger: NotRequired[dict[str, Any]]
    flops_profiler: NotRequired[FlopsProfilerConfig | None]


@_STRICT
class AskedConfig(DeepSpeedConfig):
    """A DeepSpeed JSON as a user writes it."""

    scheduler: NamedConfig


class CompletedConfig(DeepSpeedConfig):
    """A DeepSpeed JSON as DeepSpeed gets it: with batch keys, and without a scheduler where the rate is constant."""

    scheduler: NotRequired[NamedConfig]
    train_micro_batch_size_per_gpu: int
    gradient_accumulation_steps: int
    train_batch_size: int


def find(name: str) -> Path:
    """The file that `train.ds_config` names: a path, or a name from `ds_configs/`.

    Raises:
        UserError: there is no such file; the message lists the names that there are.
    """
    if name.endswith(".json") or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise UserError(f"train.ds_config = {name!r}: no such file")
    for folder in _FOLDERS:
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    names = sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.json")})
    raise UserError(f"train.ds_config = {name!r}: no such configuration; there are {', '.join(names)}, or give a path")


def read(name: str) -> dict[str, Any]:
    """Read the JSON as plain data; it is checked later, after overrides are applied.

    Raises:
        UserError: there is no such file, it is not JSON, or a key is given twice.
    """
    path = find(name)
    try:
        tree = json.loads(path.read_text(), object_pairs_hook=lambda pairs: _without_duplicates(pairs, path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(tree).__name__}")
    return tree


def _without_duplicates(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"{path}: key given twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return tree


def check(tree: Mapping[str, Any], source: str) -> AskedConfig:
    """Check every level of a DeepSpeed configuration, and return it.

    Raises:
        UserError: naming `source` and every problem with its key, value and what is allowed.
    """
    problems = [f"{key}: belongs to {_OWNERS[key]}; remove it" for key in tree if key in _OWNERS]
    ours = {key: value for key, value in tree.items() if key not in _OWNERS}
    problems += _problems(lambda: TypeAdapter(AskedConfig).validate_python(ours), "", AskedConfig.__annotations__)
    problems += _deepspeed_problems(tree)
    optimizer, scheduler = tree.get("optimizer"), tree.get("scheduler")
    if isinstance(optimizer, dict) and isinstance(optimizer.get("params"), dict):
        problems += _optimizer_problems(str(optimizer.get("type")), optimizer["params"])
    if isinstance(scheduler, dict) and isinstance(scheduler.get("params"), dict):
        problems += _scheduler_problems(str(scheduler.get("type")), scheduler["params"])
    if problems:
        raise UserError("\n  ".join([f"{source} (DeepSpeed configuration):", *problems]))
    return cast(AskedConfig, tree)


def _problems(validate: Callable[[], object], prefix: str, allowed: Iterable[str] = ()) -> list[str]:
    try:
        validate()
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            message = problem["msg"]
            if problem["type"] == "extra_forbidden":
                message = "unknown key, which DeepSpeed might ignore silently"
                if allowed and len(problem["loc"]) == 1:
                    message += f"; allowed: {', '.join(allowed)}"
            elif problem["type"] != "missing":
                message += f" (given: {problem['input']!r})"
            lines.append(f"{prefix}{'.'.join(str(part) for part in problem['loc'])}: {message}")
        return lines
    return []


def _deepspeed_problems(tree: Mapping[str, Any]) -> list[str]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    sections: dict[str, type[BaseModel]] = {
        "zero_optimization": DeepSpeedZeroConfig,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
        "comms_logger": CommsLoggerConfig,
    }
    problems = []
    for name, model in sections.items():
        section = tree.get(name, {})
        if isinstance(section, dict):
            problems += _problems(partial(model, **section), f"{name}.")
    zero = tree.get("zero_optimization")
    if isinstance(zero, dict) and type(zero.get("stage")) is not int:  # isinstance takes True for an int
        problems.append(f"zero_optimization.stage: must be 0, 1, 2 or 3 (given: {zero.get('stage')!r})")
    return problems


def _optimizer_problems(kind: str, params: Mapping[str, Any]) -> list[str]:
    import torch

    if kind in ("Adam", "AdamW"):
        allowed = _ADAM
    elif isinstance(optimizer := getattr(torch.optim, kind, None), type) and kind != "Optimizer":
        allowed = set(inspect.signature(optimizer).parameters) - {"params"}
    else:
        return [f"optimizer.type: unknown (given: {kind!r}); Adam, AdamW or a class of torch.optim such as SGD"]
    problems = [
        f"optimizer.params.{key}: unknown for {kind}; allowed: {', '.join(sorted(allowed))}"
        for key in params
        if key not in allowed
    ]
    problems += _texts("optimizer.params.", params, getattr(torch.optim, kind))
    lr = params.get("lr")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        problems.append(f"optimizer.params.lr: must be a finite number above 0 (given: {lr!r})")
    return problems


def _texts(prefix: str, params: Mapping[str, Any], function: Callable[..., object]) -> list[str]:
    """Describe texts in the place of numbers, with which DeepSpeed and torch would compute without a check."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    return [
        f"{prefix}{key}: must be like {json.dumps(defaults[key])} (given: {value!r})"
        for key, value in params.items()
        if key != "lr" and isinstance(value, str) and isinstance(defaults.get(key), int | float | list | tuple)
    ]


def _scheduler_problems(kind: str, params: Mapping[str, Any]) -> list[str]:
    from deepspeed.runtime import lr_schedules

    if kind == "constant":
        return [f"scheduler.params.{key}: constant takes none; remove it" for key in params]
    if kind not in lr_schedules.VALID_LR_SCHEDULES:
        names = ", ".join(["constant", *lr_schedules.VALID_LR_SCHEDULES])
        return [f"scheduler.type: unknown (given: {kind!r}); allowed: {names}"]
    allowed = set(inspect.signature(getattr(lr_schedules, kind)).parameters) - {"optimizer", "last_batch_iteration"}
    unknown = [
        f"scheduler.params.{key}: unknown for {kind}; allowed: {', '.join(sorted(allowed))}"
        for key in params
        if key not in allowed
    ]
    others = {key: value for key, value in params.items() if key not in _FILLED}
    unknown += _texts("scheduler.params.", others, getattr(lr_schedules, kind))
    return unknown + [
        f'scheduler.params.{key}: must be a whole number of at least 0, or "auto" (given: {params[key]!r})'
        for key in _FILLED
        if key in params and params[key] != "auto" and (type(params[key]) is not int or params[key] < 0)
    ]


def complete(ds: AskedConfig, config: RunConfig, layout: Layout, max_steps: int) -> CompletedConfig:
    """The JSON for DeepSpeed, with batch keys, the learning rate for this global batch, and numbers for `auto`.

    DeepSpeed counts tile ranks as data-parallel replicas, so its batch counts them, too.
    """
    events = config.data.batch * config.train.accumulate
    resolved: Any = json.loads(json.dumps(ds))
    batch = (config.data.batch, config.train.accumulate, events * layout.data * layout.tiles)
    resolved.update(zip(_BATCH, batch, strict=True))
    factor = _growth(config, layout)
    resolved["optimizer"]["params"]["lr"] *= factor
    if resolved["scheduler"]["type"] == "constant":
        del resolved["scheduler"]
        return cast(CompletedConfig, resolved)
    params = resolved["scheduler"]["params"]
    params.update({key: params[key] * factor for key in _RATES if key in params})
    params.update({key: value for key, value in _filled(max_steps).items() if params.get(key) == "auto"})
    return cast(CompletedConfig, resolved)


def uncompleted(ds: CompletedConfig, config: RunConfig, layout: Layout, max_steps: int) -> AskedConfig:
    """The inverse of `complete`, called with the same arguments."""
    asked: Any = {key: value for key, value in json.loads(json.dumps(ds)).items() if key not in _BATCH}
    factor = _growth(config, layout)
    asked["optimizer"]["params"]["lr"] = _divided(asked["optimizer"]["params"]["lr"], factor)
    params = asked.setdefault("scheduler", {"type": "constant", "params": {}})["params"]
    params.update({key: _divided(params[key], factor) for key in _RATES if key in params})
    params.update({key: "auto" for key, value in _filled(max_steps).items() if params.get(key) == value})
    return cast(AskedConfig, asked)


def _growth(config: RunConfig, layout: Layout) -> float:
    """The factor on the learning rate for the global batch of this layout."""
    events = config.data.batch * config.train.accumulate * layout.data
    power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[config.train.lr_scaling]
    return float((events / config.train.lr_reference_batch) ** power)


def _filled(max_steps: int) -> dict[str, int]:
    """The numbers that stand for `auto` in a schedule."""
    # the warm-up is a twentieth of the run, about the share of Goyal et al. (arXiv:1706.02677), 5 of 90 epochs
    return dict(zip(_FILLED, (max_steps, max(2, round(max_steps / 20))), strict=True))


def _divided(product: float, factor: float) -> float:
    """The number with the fewest digits that gives `product` when it is multiplied by `factor`."""
    quotient = product / factor
    near = (quotient, math.nextafter(quotient, 0), math.nextafter(quotient, math.inf))
    exact = (number for number in (float(f"{quotient:.12g}"), *near) if number * factor == product)
    return next(exact, quotient)


def precision(ds: DeepSpeedConfig) -> str:
    """The precision in which torch_autocast computes, `fp32`, `bf16` or `fp16`; parameters are always fp32."""
    if not ds["torch_autocast"]["enabled"]:
        return "fp32"
    return {"bfloat16": "bf16", "float16": "fp16"}[ds["torch_autocast"]["dtype"]]


def offload_device(ds: DeepSpeedConfig) -> str:
    """The device to which the state of the optimizer is offloaded, or `none`."""
    return str((ds["zero_optimization"].get("offload_optimizer") or {}).get("device", "none"))


def compiles_adam(ds: DeepSpeedConfig) -> bool:
    """Whether DeepSpeed compiles its CPU Adam at the first use."""
    return offload_device(ds) == "cpu" and bool(ds["zero_force_ds_cpu_optimizer"])
