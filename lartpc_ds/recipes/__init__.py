"""Shipped run configurations, and how a RUN argument plus `--set` becomes a checked pair of configurations.

A recipe is a commented TOML file in this folder. `--set KEY=VALUE` reaches into it, `--set ds.KEY=VALUE` into the
DeepSpeed JSON that it names; VALUE is TOML, so a string needs its quotes and nothing is guessed.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lartpc_ds import ds_config
from lartpc_ds.config import RunConfig
from lartpc_ds.errors import UserError

__all__ = ["as_written", "load", "names", "path_of"]

_FOLDER = Path(__file__).parent


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
        UserError: naming every problem of the TOML or of the JSON.
    """
    config = RunConfig.parse(as_written(run, overrides), run)
    ds = ds_config.read(config.train.ds_config)
    for key, value in map(_parse, overrides):
        if key[0] == "ds":
            _put(ds, key[1:], value)
    ds_config.check(ds, config.train.ds_config)
    return config, ds


def as_written(run: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of the TOML with the overrides, and without defaults; not checked.

    Raises:
        UserError: no such file, or not TOML.
    """
    path = path_of(run)
    try:
        tree = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    for key, value in map(_parse, overrides):
        if key[0] != "ds":
            _put(tree, key, value)
    return tree


def _parse(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path) or path == ["ds"]:
        raise UserError(f"--set {text!r}: must be KEY=VALUE, such as train.max_steps=10")
    try:
        tree = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        hint = f'{key}="{value.strip()}"'
        raise UserError(f"--set {text!r}: VALUE must be TOML; if a string is meant: --set '{hint}'") from None
    if len(tree) > 1:
        raise UserError(f"--set {text!r}: holds more than one key; give each its own --set")
    return path, tree["value"]


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {'.'.join(path)}: {part} is a value, not a section")
    tree[path[-1]] = value
