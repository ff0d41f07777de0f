"""Checkpoints: they are complete or absent, exact to resume from, and simple to use elsewhere.

The folder `checkpoints/step_0000100/` holds DeepSpeed's own files (weights, optimizer, schedule, and our loss scale),
`rank<N>.pt` (random state and BatchNorm buffers of that rank, since DeepSpeed keeps those of rank 0 only), `model.pt`
(whole fp32 weights, for anyone with torch) and `manifest.json`, which has the size and the checksum of each of these
files. The folder is written under another name, and is renamed when every rank has put its files on the disk. So a
folder with the final name is complete, and the links `last` and `best` point to such folders only. Rejected:
DeepSpeed's file `latest`, because it is written before the other ranks have finished.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from lartpc_ds.data.integrity import FileRecord, sync
from lartpc_ds.training.checkpoint_files import link, manifest, remove_old, step_folder, write_manifest
from lartpc_ds.training.engine import Engine
from lartpc_ds.training.loss_scale import LossScale

__all__ = ["Progress", "load", "save"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come. The sampler's position follows from `step` alone."""

    step: int = 0
    events: int = 0
    best_score: float | None = None


def save(engine: Engine, folder: Path, progress: Progress, run: str, facts: Mapping[str, Any], *, best: bool) -> None:
    """Write a checkpoint of the run named `run`; a collective of all ranks. The manifest gets the plain data `facts`.

    Older checkpoints are removed after the new one is complete, except the one before it and the one that `best`
    points to.
    """
    final = step_folder(folder, progress.step)
    rank = engine.groups.rank
    exists = final.exists()
    dist.barrier()  # all ranks have looked before rank 0 changes anything
    if not exists:
        partial = folder / f"{final.name}.partial"
        if rank == 0 and partial.exists():
            shutil.rmtree(partial)  # what a killed run left
        dist.barrier()
        mine = _write(engine, partial)
        files: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(files, mine)  # and all ranks are done
        if rank == 0:
            everything = {name: record for part in files for name, record in part.items()}
            write_manifest(partial, run, everything, {"progress": asdict(progress), "best": best, **facts})
            sync(partial)
            partial.rename(final)
            sync(folder)
            for script in ("zero_to_fp32.py", "zero_to_torch.py"):  # they need DeepSpeed's `latest`; we have model.pt
                (folder / script).unlink(missing_ok=True)
    if rank == 0:
        link(folder / "last", final.name)
        if best:
            link(folder / "best", final.name)
        remove_old(folder)
    dist.barrier()


def _write(engine: Engine, partial: Path) -> dict[str, FileRecord]:
    """Write this rank's files, wait until they are on the disk, and return what they are."""
    rank = engine.groups.rank
    scale = {"loss_scale": asdict(engine.loss_scale)}
    with _paths_written(engine) as paths:
        engine.deepspeed.save_checkpoint(str(partial.parent), tag=partial.name, client_state=scale, save_latest=False)
    paths.append(partial / f"rank{rank}.pt")
    torch.save(_rank_state(engine), paths[-1])
    weights = engine.full_state_dict()
    if rank == 0:
        paths.append(partial / "model.pt")
        torch.save(weights, paths[-1])
    for path in paths:
        sync(path)
    return {path.name: FileRecord.of(path) for path in paths}


@contextmanager
def _paths_written(engine: Engine) -> Iterator[list[Path]]:
    """A list that inside the `with` gets the paths of the files that DeepSpeed writes on this rank.

    Rejected: a listing of the folder, which may miss files that another host has just written.
    """
    writer = engine.deepspeed.checkpoint_engine
    save, paths = writer.save, list[Path]()

    def save_and_note(state_dict: object, path: str) -> None:
        save(state_dict, path)
        paths.append(Path(path))

    writer.save = save_and_note
    try:
        yield paths
    finally:
        del writer.save


def _rank_state(engine: Engine) -> dict[str, Any]:
    return {
        "buffers": {name: buffer.cpu() for name, buffer in engine.module.named_buffers()},
        "torch_rng": torch.get_rng_state(),
        "device_rng": get_accelerator().get_rng_state().cpu(),
    }


def load(engine: Engine, path: Path) -> Progress:
    """Restore a checkpoint of the same model on the same number of ranks; a collective of all ranks."""
    _, client = engine.deepspeed.load_checkpoint(str(path.parent), tag=path.name)
    engine.loss_scale = LossScale(**client["loss_scale"])
    state = torch.load(path / f"rank{engine.groups.rank}.pt", weights_only=True)
    buffers = dict(engine.module.named_buffers())
    for name, value in state["buffers"].items():
        buffers[name].copy_(value)
    torch.set_rng_state(state["torch_rng"])
    get_accelerator().set_rng_state(state["device_rng"])
    return Progress(**manifest(path)["progress"])
