"""The HDF5 types of larcv3 files, byte for byte as its C++ compiler lays them out.

Offsets and item sizes are given where C++ pads. A packed numpy type would read the same, but tools that compare types
would see a difference. The types are checked against a file written by larcv3 3.x (tests/unit/data/test_schema.py).
"""

from typing import Any

import numpy as np

__all__ = ["EVENT_ID", "EXTENTS", "ID_EXTENTS", "IMAGE_META", "PARTICLE", "VOXEL"]


def _padded(fields: list[tuple[str, Any, int]], itemsize: int) -> np.dtype[np.void]:
    """A compound type from (name, type, offset) rows."""
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


EVENT_ID = np.dtype([("run", "<i8"), ("subrun", "<i8"), ("event", "<i8")])
EXTENTS = _padded([("first", "<u8", 0), ("N", "<u4", 8)], 16)
ID_EXTENTS = np.dtype([("first", "<u8"), ("N", "<u4"), ("ID", "<u4")])
VOXEL = _padded([("id", "<u8", 0), ("value", "<f4", 8)], 16)
IMAGE_META = _padded(
    [
        ("valid", "u1", 0),
        ("projection_id", "<u8", 8),
        ("image_sizes", ("<f8", (2,)), 16),
        ("number_of_voxels", ("<u8", (2,)), 32),
        ("origin", ("<f8", (2,)), 48),
    ],
    72,
)
_VERTEX = np.dtype([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("t", "<f8")])
# item sizes of 72 and 344 include trailing bytes that larcv3's structs have beyond their last field
PARTICLE = _padded(
    [
        ("id", "<u2", 0),
        ("mcst_index", "<u2", 2),
        ("mct_index", "<u2", 4),
        ("shape", "<i4", 8),
        ("current_type", "<i2", 12),
        ("interaction_type", "<i2", 14),
        ("trackid", "<u4", 16),
        ("pdg", "<i4", 20),
        ("px", "<f8", 24),
        ("py", "<f8", 32),
        ("pz", "<f8", 40),
        ("vtx", _VERTEX, 48),
        ("end_pt", _VERTEX, 80),
        ("first_step", _VERTEX, 112),
        ("last_step", _VERTEX, 144),
        ("dist_travel", "<f8", 176),
        ("energy_init", "<f8", 184),
        ("energy_deposit", "<f8", 192),
        ("process", "S64", 200),
        ("parent_trackid", "<u4", 264),
        ("parent_pdg", "<i4", 268),
        ("parent_vtx", _VERTEX, 272),
        ("ancestor_trackid", "<u4", 304),
        ("ancestor_pdg", "<i4", 308),
        ("ancestor_vtx", _VERTEX, 312),
    ],
    344,
)
