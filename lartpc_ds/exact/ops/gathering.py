"""A gather ends the tiles: from there on every rank holds the whole map and computes all of it.

Small maps are not worth their halos, and some functions have no form on tiles. Rejected: a gather on one rank, on which
the others would wait.
"""

from dataclasses import dataclass

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, Function, Plans, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import AxisPlan
from lartpc_ds.exact.kernels.halo import padded

__all__ = ["Gather"]


@dataclass(frozen=True, slots=True)
class Gather:
    """The whole of a map (N, C, rows, columns).

    Its adjoint adds the gradients that all ranks have of a rank's own tile.
    """

    plans: Plans

    @classmethod
    def of(cls, cut: Cut) -> "Gather":
        """Return the gather of a map that is cut at `cut`: every rank needs every pixel."""
        rows, cols = (AxisPlan(bounds, ((0, bounds[-1]),) * (len(bounds) - 1)) for bounds in cut.bounds)
        return cls((rows, cols))

    def __call__(self, tiles: Tiles, function: Function | None, /, x: Tensor) -> Tensor:
        """Return the map, which is the same on every rank."""
        return padded(tiles, x, view_of(self.plans, tiles))
