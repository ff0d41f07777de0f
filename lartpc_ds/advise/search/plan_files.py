"""A plan is written as the run TOML and the DeepSpeed JSON that train what was chosen."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from lartpc_ds.config import ds_config, recipes
from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.applied import applied, keys_of
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.errors import UserError

__all__ = ["check_free", "write_plan"]


def check_free(run: str, folder: Path) -> tuple[Path, Path]:
    """Find the run TOML and the JSON that a plan of `run` is written to.

    Raises:
        UserError: there is no such folder, or one of the files exists.
    """
    if not folder.is_dir():
        raise UserError(f"--out {folder}: no such folder; make it first")
    paths = folder / f"{recipes.stem_of(run)}-plan.toml", folder / f"{recipes.stem_of(run)}-plan.json"
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: exists; move it away, or choose another folder with --out DIR")
    return paths


def write_plan(
    run: str,
    overrides: Sequence[str],
    config: RunConfig,
    ds: DeepSpeedConfig,
    candidate: Candidate,
    ranks_per_node: int,
    folder: Path,
) -> str:
    """Write both files, checked; returns the command that trains with them.

    Args:
        run: the RUN that was planned; what it says and the plan does not change is kept, its comments are not.
        overrides: its `--set`s, which become part of the files.
        config: what the two give.
        ds: the DeepSpeed JSON that they give.
        candidate: what was chosen.
        ranks_per_node: devices of a machine.
        folder: where to write.

    Raises:
        UserError: as `check_free`.
    """
    toml_path, json_path = check_free(run, folder)
    _, chosen_ds = applied(config, ds, candidate)
    tree = recipes.as_written(run, overrides)
    for section, values in keys_of(candidate).items():
        tree.setdefault(section, {}).update(values)
    # a bare name would be looked up among the shipped files
    tree["train"]["ds_config"] = str(json_path)
    devices = candidate.layout.world_size
    nodes = -(-devices // ranks_per_node)
    tree.setdefault("batch", {}).update(nodes=nodes, ranks_per_node=min(devices, ranks_per_node))
    RunConfig.parse(tree, str(toml_path))
    ds_config.check(chosen_ds, str(json_path))
    header = f"# {run}, planned for {devices} device(s): {candidate.layout}\n\n"
    toml_path.write_text(header + tomli_w.dumps(tree))
    json_path.write_text(json.dumps(chosen_ds, indent=2) + "\n")
    where = ["--devices", str(devices)] if nodes == 1 else ["--hostfile", "HOSTFILE"]
    return shlex.join(["lartpc-ds", "train", str(toml_path), *where])
