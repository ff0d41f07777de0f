"""A tuning's winner is written as a DeepSpeed JSON under a new name, and a run TOML that names it."""

import json
from pathlib import Path

import tomli_w

from lartpc_ds.advise.tune.tune_trials import Trial
from lartpc_ds.config import ds_config, recipes
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.applied import offloads
from lartpc_ds.data.integrity import write_atomically

__all__ = ["write_winner"]

_CONFIGS = "ds_configs"


def write_winner(trial: Trial, run: str, folder: Path) -> tuple[Path, Path]:
    """Write both; returns the TOML and the JSON. A tuning that has written them before leaves them as they are.

    Args:
        trial: the fastest.
        run: the RUN that was tuned; its name becomes part of theirs.
        folder: of the tuning, where the TOML goes, and the JSON too if the current folder has no `ds_configs`.
    """
    toml_path = folder / f"{recipes.stem_of(run)}-tuned.toml"
    if toml_path.exists():
        kept = RunConfig.parse(recipes.as_written(str(toml_path)), str(toml_path))
        return toml_path, Path(kept.train.ds_config)
    shared = Path.cwd() / _CONFIGS
    offload = "_offload" if offloads(trial.ds) else ""
    stem = f"zero{trial.ds['zero_optimization']['stage']}{offload}_{ds_config.precision(trial.ds)}"
    json_path = _free(shared if shared.is_dir() else folder, f"{stem}_tuned-{recipes.stem_of(run)}")
    ds_config.check(trial.ds, str(json_path))
    write_atomically(json_path, json.dumps(trial.ds, indent=2) + "\n")
    train = trial.config.train.model_copy(update={"ds_config": str(json_path)})
    tree = trial.config.model_copy(update={"train": train}).model_dump(mode="json", exclude_none=True)
    header = f"# {run}, tuned by `lartpc-ds tune` on {trial.layout.world_size} rank(s): {trial.name}\n\n"
    write_atomically(toml_path, header + tomli_w.dumps(tree))
    return toml_path, json_path


def _free(folder: Path, stem: str) -> Path:
    """A name that nothing has yet: stem, stem-2, stem-3, ..."""
    number = 1
    while (path := folder / f"{stem}{'' if number == 1 else f'-{number}'}.json").exists():
        number += 1
    return path
