"""Checkpoints: complete or absent, exact to resume, simple to use elsewhere.

`checkpoints/step_0000100/` holds DeepSpeed's own files (weights, optimizer, schedule, and our loss scale), `rank<N>.pt`
(random state and BatchNorm buffers of that rank: DeepSpeed keeps rank 0's only), `model.pt` (whole fp32 weights, for
anyone with torch) and `manifest.json`. It is written under another name and renamed when every rank is done, so a
directory with the final name is complete; the links `last` and `best` point to such directories only. DeepSpeed's
`latest` file is not used, because it is written before the other ranks have finished.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from lartpc_ds.engine import Engine
from lartpc_ds.errors import UserError
from lartpc_ds.loss_scale import LossScale

__all__ = ["Progress", "latest", "load", "manifest", "resolve", "save"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. The sampler's position follows from `step` alone."""

    step: int = 0
    events: int = 0
    best_score: float | None = None


def save(engine: Engine, folder: Path, progress: Progress, facts: Mapping[str, Any], *, best: bool) -> None:
    """Write a checkpoint; a collective of all ranks. `facts` (plain data) goes to the manifest.

    Older checkpoints are removed after the new one is complete, except the one that `best` points to.
    """
    final = folder / f"step_{progress.step:07d}"
    partial = folder / f"{final.name}.partial"
    rank = engine.groups.rank
    exists = final.exists()
    dist.barrier()  # all ranks have looked before rank 0 changes anything
    if not exists:
        if rank == 0 and partial.exists():
            shutil.rmtree(partial)  # what a killed run left
        dist.barrier()
        scale = {"loss_scale": engine.loss_scale.as_dict()}
        engine.deepspeed.save_checkpoint(str(folder), tag=partial.name, client_state=scale, save_latest=False)
        torch.save(_rank_state(engine), partial / f"rank{rank}.pt")
        weights = engine.full_state_dict()
        if rank == 0:
            torch.save(weights, partial / "model.pt")
            text = json.dumps({"progress": asdict(progress), **facts}, indent=2)
            (partial / _MANIFEST).write_text(text + "\n")
        dist.barrier()
        if rank == 0:
            partial.rename(final)
            for script in (
                "zero_to_fp32.py",
                "zero_to_torch.py",
            ):  # they want DeepSpeed's `latest`; model.pt is at hand
                (folder / script).unlink(missing_ok=True)
    if rank == 0:
        _link(folder / "last", final.name)
        if best:
            _link(folder / "best", final.name)
        _remove_old(folder)
    dist.barrier()


def _rank_state(engine: Engine) -> dict[str, Any]:
    return {
        "buffers": {name: buffer.cpu() for name, buffer in engine.module.named_buffers()},
        "torch_rng": torch.get_rng_state(),
        "device_rng": get_accelerator().get_rng_state().cpu(),
    }


def _link(link: Path, target: str) -> None:
    fresh = link.with_name(f"{link.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _remove_old(folder: Path) -> None:
    kept = {(folder / link).resolve() for link in ("last", "best")}
    for path in folder.glob("step_*"):
        if path.resolve() not in kept and not path.name.endswith(".partial"):
            shutil.rmtree(path)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    complete = [path for path in folder.glob("step_*") if (path / _MANIFEST).exists() and path.suffix != ".partial"]
    return max(complete, key=lambda path: path.name, default=None)


def resolve(folder: Path, name: str) -> Path:
    """The checkpoint called `name` (`best`, `last` or `step_...`) in a run's `checkpoints/`.

    Raises:
        UserError: there is none; lists those there are.
    """
    path = folder / name
    if not (path / _MANIFEST).is_file():
        there = sorted(p.name for p in folder.glob("*") if (p / _MANIFEST).is_file() and p.suffix != ".partial")
        raise UserError(f"checkpoint {name!r}: not in {folder}; there are: {', '.join(there) or 'none'}")
    return path.resolve()


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint."""
    content: dict[str, Any] = json.loads((path / _MANIFEST).read_text())
    return content


def load(engine: Engine, path: Path) -> Progress:
    """Continue from a checkpoint of the same model on the same number of ranks; a collective of all ranks."""
    _, client = engine.deepspeed.load_checkpoint(str(path.parent), tag=path.name)
    engine.loss_scale = LossScale(**client["loss_scale"])
    state = torch.load(path / f"rank{engine.groups.rank}.pt", weights_only=True)
    buffers = dict(engine.module.named_buffers())
    for name, value in state["buffers"].items():
        buffers[name].copy_(value)
    torch.set_rng_state(state["torch_rng"])
    get_accelerator().set_rng_state(state["device_rng"])
    return Progress(**manifest(path)["progress"])
