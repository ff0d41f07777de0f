"""Copies of event files on a host's own disk, which are read over the network once and not once per epoch and rank.

The ranks of a host take turns by a lock on a file of that disk, and the first rank makes the copy. Copies stay there
for the next job with the same files; where the disk belongs to a job, the batch system clears it.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lartpc_ds.data.files import expand
from lartpc_ds.errors import UserError

__all__ = ["stage"]


def stage(patterns: Sequence[str], folder: str) -> tuple[str, ...]:
    """Copy the files into `folder`, unless unchanged copies are there already; the copies sort as their originals.

    Raises:
        UserError: there is no such file or variable, or the folder cannot hold the copies.
    """
    home = Path(os.path.expandvars(folder)).expanduser()
    if "$" in str(home):
        raise UserError(f"launch.stage_to = {folder!r}: it names a variable that is not set on this host")
    files = expand(patterns)
    key = hashlib.sha256("\n".join(str(path.resolve()) for path in files).encode()).hexdigest()[:12]
    home = home / f"lartpc-ds-{os.getuid()}-{key}"
    copies = [home / f"{number:06d}-{path.name}" for number, path in enumerate(files)]
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, copy in zip(files, copies, strict=True):
            _copy_once(path, copy)
    except OSError as error:
        raise UserError(
            f"launch.stage_to = {folder!r}: the folder cannot hold the event files: {error}; give another folder, or "
            "leave the key out to read the files where they are"
        ) from None
    return tuple(map(str, copies))


def _copy_once(path: Path, copy: Path) -> None:
    with copy.with_name(f"{copy.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if copy.exists() and _same(path.stat(), copy.stat()):
            return
        partial = copy.with_name(f"{copy.name}.partial")
        shutil.copy2(path, partial)
        partial.replace(copy)


def _same(original: os.stat_result, copy: os.stat_result) -> bool:
    return (original.st_size, int(original.st_mtime)) == (copy.st_size, int(copy.st_mtime))
