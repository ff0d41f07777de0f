"""Opening and reading HDF5 so that every fault ends in one sentence for the user.

h5py reports a broken file by half a dozen kinds of exception, depending on the byte that is wrong, and often only at
the read of one chunk. Everything that touches a file goes through these functions, which turn all of that
into UserError and hand out numpy arrays only. Field offsets and padding are free (they differ between compilers, HDF5
converts by field name); field names, kinds and sizes are not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lartpc_ds.errors import UserError

__all__ = ["Table", "child_names", "open_for_reading"]

_LOCKING: dict[str, bool | str] = {"TRUE": True, "FALSE": False, "BEST_EFFORT": "best-effort"}
"""The library looks at HDF5_USE_FILE_LOCKING when it is loaded only, and the run's configuration is read later."""


@contextmanager
def _faults_named(where: str) -> Iterator[None]:
    """Turn what h5py raises on damaged bytes into a UserError that starts with `where`."""
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        # damaged names end in TypeError, a damaged size in the wish for an exabyte
        reason = str(error).strip("'\"")
        raise UserError(f"{where}: cannot be read, the file is damaged or incomplete ({reason})") from None


def open_for_reading(path: Path) -> h5py.File:
    """Open `path` read-only; UserError if it is absent, not HDF5 or cut off."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        return h5py.File(path, "r", locking=_LOCKING.get(os.environ.get("HDF5_USE_FILE_LOCKING", "")))
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except OSError as error:
        reason = str(error)
        if "lock file" in reason:
            raise UserError(
                f"{path}: locked: another program is writing it, or its file system refuses locks "
                f'(launch.hdf5_file_locking = "off" does without); {reason}'
            ) from None
        if "truncated" in reason:
            raise UserError(f"{path}: the file is truncated; copy or write it again ({reason})") from None
        raise UserError(f"{path}: not an HDF5 file, or its head is damaged ({reason})") from None


def child_names(file: h5py.File, group: str) -> list[str]:
    """Names in `group`, sorted; UserError if there is no such group."""
    where = f"{file.filename}: group {group}"
    with _faults_named(where):
        if isinstance(file.get(group), h5py.Group):
            return sorted(file[group])
    raise UserError(f"{where} is missing; this is not a larcv3 file")


class Table:
    """A one-dimensional dataset read as `dtype`, whose fields it must have by name, kind and size.

    `len(table)` is its number of rows. Raises UserError if the dataset is missing or of another type.
    """

    def __init__(self, file: h5py.File, name: str, dtype: np.dtype[np.void]) -> None:
        self.where = f"{file.filename}: {name}"
        with _faults_named(self.where):
            dataset = file.get(name)
            found = (dataset.dtype, dataset.shape) if isinstance(dataset, h5py.Dataset) else None
        if found is None:
            raise UserError(f"{self.where} is missing or unreadable")
        found_dtype, shape = found
        if len(shape) != 1:
            raise UserError(f"{self.where} has {len(shape)} dimensions, expected 1")
        problem = _type_problem(found_dtype, dtype)
        if problem:
            raise UserError(f"{self.where} has the wrong type: {problem}")
        # h5py re-reads the type at every access through astype(), which costs 1 ms for particles: only where it must
        self._rows = dataset if found_dtype == dtype else dataset.astype(dtype)
        self._num_rows = int(shape[0])

    def __len__(self) -> int:
        return self._num_rows

    def read(self, first: int = 0, stop: int | None = None, where: str = "") -> NDArray[np.void]:
        """Rows [first, stop); `where` opens an error's message, by default the table's name."""
        with _faults_named(where or self.where):
            rows: NDArray[np.void] = self._rows[first:stop]
        return rows


def _type_problem(found: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """What keeps `found` from being read as `wanted`; empty if nothing does. Byte order and offsets are free."""
    if wanted.names is None:
        same = found.names is None and found.newbyteorder("=") == wanted.newbyteorder("=")
        return "" if same else f"{found}, expected {wanted}"
    if found.names is None:
        return f"{found}, expected a compound of {', '.join(wanted.names)}"
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        return f"no field {', '.join(missing)}"
    problems = ((name, _type_problem(found[name], wanted[name])) for name in wanted.names)
    return next((f"field {name} is {problem}" for name, problem in problems if problem), "")
