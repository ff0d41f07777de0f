"""Shipped run configurations, and how a RUN argument plus `--set` becomes a checked pair of configurations.

RUN is the name of a recipe, a run TOML, or the folder of a run, which stands for the configurations that the run was
given. A recipe is a commented TOML file in this folder. `--set KEY=VALUE` changes a key of it, `--set ds.KEY=VALUE` a
key of the DeepSpeed JSON that it names (see `lartpc_ds.config.recipes.overrides`).
"""

import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lartpc_ds.config import ds_config
from lartpc_ds.config.ds_config import AskedConfig, CompletedConfig
from lartpc_ds.config.recipes.overrides import Override, parse, put
from lartpc_ds.config.run import RunConfig, TrainConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = ["as_written", "folder_of", "fresh_path", "is_folder", "load", "names", "path_of", "stem_of"]

_FOLDER = Path(__file__).parent
_DEFAULT_JSON = TrainConfig.model_fields["ds_config"].default


def names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def path_of(run: str) -> Path:
    """The TOML file behind RUN: a shipped recipe's name, a path, or the folder of a run.

    Raises:
        UserError: RUN is none of these, with a list of the recipes; or the run folder is damaged.
    """
    if run in names():
        return _FOLDER / f"{run}.toml"
    if Path(run).is_file():
        return Path(run)
    if (folder := _folder(run)) is not None:
        folder.verified(*(path.name for path in (folder.config_file, folder.ds_config_file, folder.job_file)))
        return folder.config_file
    raise UserError(
        f"RUN = {run!r}: no such file, no run folder, and no recipe of that name; recipes: {', '.join(names())}"
    )


def stem_of(run: str) -> str:
    """A short name of RUN, for files that are made from it."""
    return Path(run).resolve().name if is_folder(run) else Path(run).stem


def fresh_path(run: str, prefix: str = "") -> Path:
    """A folder for what is made of RUN now, below `runs` of the current folder."""
    return Path.cwd() / "runs" / f"{prefix}{stem_of(run)}-{time.strftime('%Y%m%d-%H%M%S')}"


def is_folder(run: str) -> bool:
    """Whether RUN is the folder of a run."""
    return _folder(run) is not None


def folder_of(run: Path) -> RunFolder:
    """The run folder at `run`.

    Raises:
        UserError: there is none; a recipe or a run TOML has no results, and the message says so.
    """
    folder = RunFolder(run.absolute())
    if (run.is_file() and run.suffix == ".toml") or (str(run) in names() and not run.exists()):
        raise UserError(
            f"{run}: says how to train, and has no results; give the folder of a run, such as the one that "
            f"`lartpc-ds train {run}` makes"
        )
    folder.require()
    return folder


def _folder(run: str) -> RunFolder | None:
    """The run folder that RUN names; None if it names something else."""
    folder = RunFolder(Path(run))
    return folder if run and run not in names() and folder.is_run else None


def load(run: str, overrides: Sequence[str] = ()) -> tuple[RunConfig, AskedConfig]:
    """Read the run configuration and the DeepSpeed JSON of RUN, apply the overrides and check both.

    Raises:
        UserError: naming every problem of the overrides, of the TOML and of the JSON.
    """
    settings, problems = parse(overrides)
    tree = _read(run)
    problems += put(tree, [setting for setting in settings if not setting.in_json])
    config, ds = None, None
    try:
        config = RunConfig.parse(tree, run)
    except UserError as error:
        problems.append(str(error))
    try:
        ds = _json(run, tree, settings)
    except UserError as error:
        problems.append(str(error))
    if problems or config is None or ds is None:
        raise UserError("\n".join(problems))
    return config, ds


def _json(run: str, tree: Mapping[str, Any], settings: Sequence[Override]) -> AskedConfig | None:
    """Read the DeepSpeed JSON, apply the overrides and check it; None where the TOML does not name one."""
    train = tree.get("train", {})
    name = train.get("ds_config", _DEFAULT_JSON) if isinstance(train, dict) else None
    if not isinstance(name, str):
        return None  # the check of the TOML reports it
    folder = _folder(run)
    ds: dict[str, Any]
    if folder is None or any(setting.path == ("train", "ds_config") for setting in settings if not setting.in_json):
        ds = ds_config.read(name)
    else:
        name, ds = str(folder.ds_config_file), {**_asked(folder)}
    if problems := put(ds, [setting for setting in settings if setting.in_json]):
        raise UserError("\n".join(problems))
    return ds_config.check(ds, name)


def _asked(folder: RunFolder) -> AskedConfig:
    """The DeepSpeed JSON that a run was given, worked out from the completed one in its folder."""
    config = RunConfig.parse(_read(str(folder.path)), str(folder.config_file))
    job = json.loads(folder.job_file.read_text())
    completed: CompletedConfig = json.loads(folder.ds_config_file.read_text())
    return ds_config.uncompleted(completed, config, Layout(**job["layout"]), job["max_steps"])


def as_written(run: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of the TOML with the overrides but without defaults; they are not checked.

    Raises:
        UserError: no such file, not TOML, or an override that cannot be read.
    """
    settings, problems = parse(overrides)
    tree = _read(run)
    problems += put(tree, [setting for setting in settings if not setting.in_json])
    if problems:
        raise UserError("\n".join(problems))
    return tree


def _read(run: str) -> dict[str, Any]:
    path = path_of(run)
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
