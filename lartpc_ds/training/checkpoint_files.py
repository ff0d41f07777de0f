"""A run's `checkpoints/` as files: which of them exist, which are whole, and which are kept. No torch, no ranks.

A checkpoint is a folder `step_0000100` with a `manifest.json`, which says what state it holds, which run it belongs to,
and the size and checksum of each of its files. The command line compares them before it starts ranks, and the ranks
then trust them. Rejected: each rank compares what it reads, because DeepSpeed's ranks read the shards of other ranks as
well, and because a rank that finds damage cannot decide alone to go back to an earlier checkpoint.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lartpc_ds.data.integrity import Damage, FileRecord, fault, seal, unseal, write_atomically
from lartpc_ds.errors import UserError

__all__ = [
    "check_weights_file",
    "complete",
    "faults",
    "go_back",
    "latest",
    "link",
    "manifest",
    "newest_whole",
    "remove_old",
    "resolve",
    "step_folder",
    "write_manifest",
]

_MANIFEST = "manifest.json"
_KEPT = 2
_DAMAGED = ".damaged"


def step_folder(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return folder / f"step_{step:07d}"


def _steps(folder: Path) -> list[Path]:
    """All folders with the name of a checkpoint, oldest first. A checkpoint gets this name when it is complete."""
    return sorted(path for path in folder.glob("step_*") if not path.suffix)


def complete(folder: Path) -> list[Path]:
    """All checkpoints with a manifest, oldest first. Their files may be damaged."""
    return [path for path in _steps(folder) if (path / _MANIFEST).is_file()]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next(reversed(complete(folder)), None)


def resolve(folder: Path, name: str) -> Path:
    """The checkpoint called `name` (`best`, `last` or `step_...`) in a run's `checkpoints/`.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    path = folder / name
    if not (path / _MANIFEST).is_file():
        links = [link for link in ("best", "last") if (folder / link / _MANIFEST).is_file()]
        there = [*links, *(path.name for path in complete(folder))]
        raise UserError(f"checkpoint {name!r}: not in {folder}; there are: {', '.join(there) or 'none'}")
    return path.resolve()


def write_manifest(path: Path, run: str, files: Mapping[str, FileRecord], facts: Mapping[str, Any]) -> None:
    """Write the manifest of the checkpoint in the folder `path`, whose files are on the disk; `facts` is plain data."""
    records = {name: asdict(record) for name, record in sorted(files.items())}
    write_atomically(path / _MANIFEST, seal({**facts, "run": run, "files": records}))


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; raises Damage if it is missing or changed."""
    return unseal(path / _MANIFEST)


def faults(path: Path, run: str, *names: str) -> list[str]:
    """What is wrong with a checkpoint of the run `run`: with its manifest, and with its files `names`, or all files."""
    try:
        tree = manifest(path)
    except Damage as damage:
        return [str(damage)]
    step = int(tree["progress"]["step"])
    if tree["run"] != run:
        return [f"{_MANIFEST} is of another run"]
    if path.name != step_folder(path.parent, step).name:
        return [f"{_MANIFEST} is of step {step}"]
    records = {name: FileRecord(**record) for name, record in tree["files"].items()}
    differences = filter(None, (fault(path / name, records[name]) for name in names or records))
    # DeepSpeed finds files by patterns, so it would read one too many, too
    strangers = [] if names else sorted({file.name for file in path.glob("*.pt")} - set(records))
    return [*differences, *(f"{name} is not part of it" for name in strangers)]


def newest_whole(folder: Path, run: str) -> tuple[Path | None, dict[Path, list[str]]]:
    """The newest checkpoint without faults, and the faults of each newer one.

    Raises:
        UserError: there are checkpoints, and none is whole; or the folder itself is missing.
    """
    if not folder.is_dir():
        raise UserError(f"--resume: {folder} is missing: restore it from a copy, or start anew in another --run-dir")
    damaged: dict[Path, list[str]] = {}
    for path in reversed(_steps(folder)):
        if not (faults_of_path := faults(path, run)):
            return path, damaged
        damaged[path] = faults_of_path
    if damaged:
        lists = (f"{path.name}: {', '.join(its_faults)}" for path, its_faults in damaged.items())
        raise UserError(
            f"--resume: no checkpoint in {folder} is whole: {'; '.join(lists)}. Restore one from a copy, or start "
            "anew in another --run-dir"
        )
    return None, damaged


def go_back(start: Path, damaged: Sequence[Path]) -> None:
    """Make `start` the last checkpoint: rename the damaged ones, so that the run can write them again, and set links.

    The damaged ones are not removed, because a file system that has shown an old view of a file may show it whole
    later. The links must be set even if nothing is damaged, after a kill between the new checkpoint and its links.
    """
    folder = start.parent
    for path in damaged:
        aside = path.with_name(path.name + _DAMAGED)
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    link(folder / "last", start.name)
    if manifest(start)["best"]:
        link(folder / "best", start.name)
    elif (folder / "best").is_symlink() and not (folder / "best").exists():
        (folder / "best").unlink()


def link(path: Path, target: str) -> None:
    """Make or replace a link in one step."""
    fresh = path.with_name(f"{path.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


def remove_old(folder: Path) -> None:
    """Keep the newest checkpoint, the one before it, in case the newest gets damaged, and the best."""
    kept = {(folder / link).resolve() for link in ("last", "best")}
    kept |= {path.resolve() for path in complete(folder)[-_KEPT:]}
    for path in _steps(folder):
        if path.resolve() not in kept:
            shutil.rmtree(path)


def check_weights_file(path: Path, source: str) -> None:
    """Check that a `model.pt` that still lies in its checkpoint is as it was written.

    Raises:
        UserError: it is not; the message names the key `source`.
    """
    if not (path.parent / _MANIFEST).is_file():
        return
    try:
        records = manifest(path.parent)["files"]
        difference = fault(path, FileRecord(**records[path.name])) if path.name in records else None
    except Damage as damage:
        difference = str(damage)
    if difference is not None:
        raise UserError(
            f"{source} = {str(path)!r}: {difference}; take another, or copy the file elsewhere to use it as it is"
        )
