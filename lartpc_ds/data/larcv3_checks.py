"""Checks of what a larcv3 file holds: which of its products to read, and which ranges and voxels are possible."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.errors import UserError

__all__ = ["check_extents", "check_same", "checked_ids", "checked_voxels", "choose_product", "choose_truth"]

_LIKE_WIRES = re.compile(r"(wires|adc|charge|caldata|rawdigits?|deconv)$")

# what writers leave in a number that nobody has set: -1, or the largest of a type (in larcv3 of int64)
_UNSET = (-1, 2**31 - 1, 2**32 - 1, 2**63 - 1)


def choose_product(file: str, groups: Sequence[str], product: str) -> str:
    """The sparse2d product to read.

    With "auto" it is `wire`, else the only name that ends with `wire`, else the only name that ends as names of wire
    images do. A product without such a name is never chosen, because labels of pixels lie in such groups, too.
    """
    names = [match[1] for name in groups if (match := re.fullmatch(r"sparse2d_(.+)_group", name))]
    key = "data.product (inspect and display: --product)"
    contents = f"the file has {', '.join(name.removesuffix('_group') for name in groups) or 'no product'}"
    unread = "; this version reads sparse2d alone, no dense images (image2d) and no clusters (cluster2d)"
    if not names:
        raise UserError(f"{file}: Data has no sparse2d_<product>_group, so no wire images to read; {contents}{unread}")
    if product != "auto":
        return _given(file, names, product, key)
    wires = [name for name in names if name.endswith("wire")]
    candidates = ["wire"] if "wire" in names else wires or [name for name in names if _LIKE_WIRES.search(name)]
    if not candidates:
        dense = unread if any(name.startswith(("image2d_", "cluster2d_")) for name in groups) else ""
        raise UserError(
            f"{file}: no sparse2d product is named like wire images (such as wire, sbndwire, adc, charge), so none is "
            f"chosen, for it may hold labels; {contents}{dense}; if {' or '.join(names)} is meant, set {key} to it"
        )
    return _the_only(file, candidates, key)


def choose_truth(file: str, groups: Sequence[str], truth: str) -> str | None:
    """The particle product to read.

    With "auto" it is `mctruth`, else the only name that ends with `neutrino`, else the only name, or None if there is
    no name.
    """
    names = [match[1] for name in groups if (match := re.fullmatch(r"particle_(.+)_group", name))]
    key = "data.truth (inspect and display: --truth)"
    if truth != "auto":
        return _given(file, names, truth, key)
    if not names:
        return None
    neutrinos = [name for name in names if name.endswith("neutrino")]
    return _the_only(file, ["mctruth"] if "mctruth" in names else neutrinos or names, key)


def _given(file: str, names: Sequence[str], wanted: str, key: str) -> str:
    if wanted not in names:
        raise UserError(f"{file}: has no {wanted!r}; set {key} to one of: {', '.join(names) or 'none in this file'}")
    return wanted


def _the_only(file: str, candidates: Sequence[str], key: str) -> str:
    if len(candidates) > 1:
        raise UserError(f"{file}: cannot choose among {', '.join(candidates)}; set {key}")
    return candidates[0]


def checked_ids(event_ids: NDArray[np.void]) -> tuple[NDArray[np.void], str]:
    """Rows of (run, subrun, event), with -1 in all three where nobody has set them, and a sentence about those, if any.

    Three cases count as unset: events whose numbers all are what a writer leaves, a whole file of zeros, and a whole
    file of at least three events with the same numbers.
    """
    numbers = np.stack([event_ids[name] for name in ("run", "subrun", "event")])
    constant = bool((numbers == numbers[:, :1]).all()) and (len(event_ids) >= 3 or not numbers.any())
    unset = np.isin(numbers, _UNSET).all(axis=0) | np.full(len(event_ids), constant)
    if not unset.any():
        return event_ids, ""
    first = "/".join(map(str, numbers[:, np.argmax(unset)].tolist()))
    event_ids = event_ids.copy()
    event_ids[unset] = -1
    count = "no event" if unset.all() else f"{int(unset.sum())} of {len(unset)} events not"
    return event_ids, (
        f"{count} identified, run, subrun and event are unset ({first}); the file's name and the index in it stand for "
        "them, so that a file that is renamed or reordered gets another split"
    )


def check_extents(extents: NDArray[np.void], table_rows: int, expected: int, where: str, unit: str) -> None:
    """Check that every range lies inside a table of `table_rows`; this also catches a wrapped negative number."""
    if len(extents) != expected:
        raise UserError(f"{where} has {len(extents)} rows, expected {expected}, one for each {unit}")
    first, count = extents["first"], extents["N"].astype(np.uint64)
    impossible = (first > table_rows) | (count > table_rows - np.minimum(first, np.uint64(table_rows)))
    if impossible.any():
        bad = int(np.argmax(impossible))
        raise UserError(
            f"{where}: {unit} {bad} points at {int(count[bad])} rows from {int(first[bad])}, the table has {table_rows}"
        )


def check_same(values: NDArray[Any], expected: Any, where: str, what: str) -> None:
    """Check that all events (first axis) agree with event 0, because one file is of one detector."""
    differs = (values != expected).reshape(len(values), -1).any(axis=1)
    if differs.any():
        bad = int(np.argmax(differs))
        given, wanted = np.asarray(values[bad]).tolist(), np.asarray(expected).tolist()
        raise UserError(f"{where}: {what} of event {bad}: {given}, of event 0: {wanted}; expected the same in all")


def checked_voxels(
    voxels: NDArray[np.void], shape: tuple[int, int], where: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ascending int64 ids and float32 values; raises UserError if they are impossible."""
    size = shape[0] * shape[1]
    raw_ids, values = voxels["id"], np.ascontiguousarray(voxels["value"])
    if len(raw_ids) and raw_ids.max() >= size:
        raise UserError(f"{where}: voxel id {raw_ids.max()} lies outside the {shape[0]} x {shape[1]} image")
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        raise UserError(f"{where}: voxel {bad} has the value {values[bad]}; expected finite values")
    ids = raw_ids.astype(np.int64)
    if not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        ids, values = ids[order], values[order]
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if len(repeated):
            raise UserError(f"{where}: voxel id {repeated[0]} occurs more than once")
    return ids, values
