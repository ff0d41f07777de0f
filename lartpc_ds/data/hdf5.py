"""Opening and reading HDF5 files, so that every fault becomes one sentence for the user.

h5py reports a broken file by half a dozen kinds of exception, depending on the byte that is wrong, and often only when
it reads one chunk. All access to a file goes through these functions, which turn every such exception into UserError
and return numpy arrays only. Field names, kinds and sizes must be as expected; field offsets and padding may differ, as
they do between compilers, since HDF5 converts by field name.
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
"""Values of HDF5_USE_FILE_LOCKING. The library reads it when it is loaded, before we read the run's configuration."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_FILTER_NAMES = {
    4: "szip",
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32026: "Blosc2",
}
"""The filters of the HDF Group's registry that files of events are packed with."""


@contextmanager
def _faults_named(where: str) -> Iterator[None]:
    """Turn what h5py raises on damaged bytes into a UserError that starts with `where`."""
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        # damaged names raise TypeError, and a damaged size asks for an exabyte
        reason = str(error).strip("'\"")
        raise UserError(f"{where}: cannot be read, the file is damaged or incomplete ({reason})") from None


def open_for_reading(path: Path) -> h5py.File:
    """Open `path` read-only.

    Raises:
        UserError: it is absent, not HDF5, cut off, locked, or was not closed by its writer.
    """
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
        if _is_lfs_pointer(path):
            raise UserError(
                f"{path}: is a Git LFS pointer, a few lines that stand for the file; fetch the file itself with "
                "git lfs pull"
            ) from None
        if "h5clear" in reason:
            raise UserError(
                f"{path}: was not closed by the program that wrote it, which crashed or still writes; once it has "
                f"ended, release the file with h5clear -s {path} and see with lartpc-ds inspect what has been written"
            ) from None
        if "lock file" in reason:
            raise UserError(
                f"{path}: locked: another program is writing it, or its file system refuses locks "
                f'(launch.hdf5_file_locking = "off" does without); {reason}'
            ) from None
        if "truncated" in reason:
            raise UserError(f"{path}: the file is truncated; copy or write it again ({reason})") from None
        raise UserError(
            f"{path}: not an HDF5 file, or its head is damaged, as when its writer crashed ({reason})"
        ) from None


def _is_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_LFS_POINTER)) == _LFS_POINTER


def child_names(file: h5py.File, group: str) -> list[str]:
    """The names in `group`, sorted; raises UserError if there is no such group."""
    where = f"{file.filename}: group {group}"
    with _faults_named(where):
        if isinstance(file.get(group), h5py.Group):
            return sorted(file[group])
    raise UserError(f"{where} is missing; this is not a larcv3 file")


class Table:
    """A one-dimensional dataset read as `dtype`, whose fields it must have by name, kind and size.

    `len(table)` is its number of rows. `packed_rows` is the number of rows that every read of a row unpacks, or 0 where
    HDF5 keeps what it has unpacked. Raises UserError if the dataset is missing, has another type, or is packed with a
    filter that this library lacks.
    """

    def __init__(self, file: h5py.File, name: str, dtype: np.dtype[np.void]) -> None:
        self.where = f"{file.filename}: {name}"
        with _faults_named(self.where):
            dataset = file.get(name)
            type_and_shape = (dataset.dtype, dataset.shape) if isinstance(dataset, h5py.Dataset) else None
        if type_and_shape is None:
            raise UserError(f"{self.where} is missing or unreadable")
        given_dtype, shape = type_and_shape
        if len(shape) != 1:
            raise UserError(f"{self.where} has {len(shape)} dimensions, expected 1")
        problem = _type_problem(given_dtype, dtype)
        if problem:
            raise UserError(f"{self.where} has the wrong type: {problem}")
        # through astype() h5py reads the type again at every access, which takes 1 ms for particles
        self._rows = dataset if given_dtype == dtype else dataset.astype(dtype)
        self._num_rows = int(shape[0])
        with _faults_named(self.where):
            missing = _missing_filter(dataset)
            self.packed_rows = _packed_rows(dataset)
        if missing:
            raise UserError(
                f"{self.where} is packed with filter {missing}, of which this HDF5 has no plugin; set HDF5_PLUGIN_PATH "
                "to a folder that has it (pip install hdf5plugin; python -c 'import hdf5plugin; "
                "print(hdf5plugin.PLUGIN_PATH)'), or repack the file where it can be read: h5repack -f GZIP=1 IN OUT"
            )

    def __len__(self) -> int:
        return self._num_rows

    def read(self, first: int = 0, stop: int | None = None, where: str = "") -> NDArray[np.void]:
        """The rows [first, stop); `where` begins the message of an error and is by default the table's name."""
        with _faults_named(where or self.where):
            rows: NDArray[np.void] = self._rows[first:stop]
        return rows


def _missing_filter(dataset: h5py.Dataset) -> str:
    """The filter that the first chunk needs and that this library lacks; empty if it lacks none."""
    if dataset.chunks is None or dataset.id.get_num_chunks() == 0:
        return ""
    properties, skipped = dataset.id.get_create_plist(), dataset.id.get_chunk_info(0).filter_mask
    for place in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(place)
        if not skipped & (1 << place) and not h5py.h5z.filter_avail(code):
            return f"{code} ({name.decode(errors='replace') or _FILTER_NAMES.get(code, 'of unknown name')})"
    return ""


def _packed_rows(dataset: h5py.Dataset) -> int:
    if dataset.chunks is None or dataset.id.get_create_plist().get_nfilters() == 0:
        return 0
    rows = int(dataset.chunks[0])
    cache_bytes = dataset.id.get_access_plist().get_chunk_cache()[1]
    return rows if rows * dataset.dtype.itemsize > cache_bytes else 0


def _type_problem(given: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """Why `given` cannot be read as `wanted`; empty if it can. Byte order and offsets may differ."""
    if wanted.names is None:
        same = given.names is None and given.newbyteorder("=") == wanted.newbyteorder("=")
        return "" if same else f"{given}, expected {wanted}"
    if given.names is None:
        return f"{given}, expected a compound of {', '.join(wanted.names)}"
    missing = [name for name in wanted.names if name not in given.names]
    if missing:
        return f"no field {', '.join(missing)}"
    problems = ((name, _type_problem(given[name], wanted[name])) for name in wanted.names)
    return next((f"field {name} is {problem}" for name, problem in problems if problem), "")
