"""DeepSpeed training of convolutional networks on whole liquid-argon TPC events.

For a loop of your own: `from lartpc_ds import Layout, make_groups, plan_tiles, spatialize`. The names that need torch
are imported when they are asked for, so that the command line answers at once.
"""

import importlib
from typing import Any

from lartpc_ds.layout import Layout

__all__ = ["Layout", "make_groups", "plan_tiles", "spatialize", "sum_over_ranks"]

__version__ = "0.1.0"

_HOMES = {
    "make_groups": "lartpc_ds.exact.grid.groups",
    "plan_tiles": "lartpc_ds.exact.spatialize",
    "spatialize": "lartpc_ds.exact.spatialize",
    "sum_over_ranks": "lartpc_ds.exact.kernels.collectives",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
