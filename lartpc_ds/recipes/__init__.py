"""Shipped run configurations, and how a RUN argument plus `--set` becomes a checked pair of configurations.

A recipe is a commented TOML file in this folder. `--set KEY=VALUE` reaches into it, `--set ds.KEY=VALUE` into the
DeepSpeed JSON that it names (see `lartpc_ds.recipes.overrides`).
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lartpc_ds import ds_config
from lartpc_ds.config import RunConfig, TrainConfig
from lartpc_ds.errors import UserError
from lartpc_ds.recipes.overrides import Override, parse, put

__all__ = ["as_written", "load", "names", "path_of"]

_FOLDER = Path(__file__).parent
_DEFAULT_JSON = TrainConfig.model_fields["ds_config"].default


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def path_of(run: str) -> Path:
    """The TOML file behind RUN: a shipped recipe's name or a path.

    Raises:
        UserError: neither; lists the recipes.
    """
    if (_FOLDER / f"{run}.toml").is_file():
        return _FOLDER / f"{run}.toml"
    if Path(run).is_file():
        return Path(run)
    raise UserError(f"RUN = {run!r}: no such file, and no recipe of that name; recipes: {', '.join(names())}")


def load(run: str, overrides: Sequence[str] = ()) -> tuple[RunConfig, dict[str, Any]]:
    """The run configuration and the DeepSpeed tree, overridden and checked.

    Raises:
        UserError: naming every problem of the overrides, of the TOML and of the JSON.
    """
    settings, problems = parse(overrides)
    tree = _read(run)
    problems += put(tree, [one for one in settings if not one.in_json])
    config, ds = None, None
    try:
        config = RunConfig.parse(tree, run)
    except UserError as error:
        problems.append(str(error))
    train = tree.get("train")
    name = train.get("ds_config", _DEFAULT_JSON) if isinstance(train, dict) else _DEFAULT_JSON
    if isinstance(name, str):  # the run's own check has the answer otherwise
        try:
            ds = _json(name, [one for one in settings if one.in_json])
        except UserError as error:
            problems.append(str(error))
    if problems or config is None or ds is None:
        raise UserError("\n".join(problems))
    return config, ds


def _json(name: str, settings: Sequence[Override]) -> dict[str, Any]:
    """The DeepSpeed tree, overridden and checked."""
    ds = ds_config.read(name)
    if problems := put(ds, settings):
        raise UserError("\n".join(problems))
    ds_config.check(ds, name)
    return ds


def as_written(run: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of the TOML with the overrides, and without defaults; not checked.

    Raises:
        UserError: no such file, not TOML, or an override that cannot be read.
    """
    settings, problems = parse(overrides)
    tree = _read(run)
    problems += put(tree, [one for one in settings if not one.in_json])
    if problems:
        raise UserError("\n".join(problems))
    return tree


def _read(run: str) -> dict[str, Any]:
    path = path_of(run)
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
