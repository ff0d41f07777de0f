"""The end of the tiles: the whole map on every rank, from where on each computes all of it."""

from dataclasses import dataclass

from torch import Tensor

from lartpc_ds.exact.grid.cuts import Cut, Function, Plans, view_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import AxisPlan
from lartpc_ds.exact.kernels.halo import padded

__all__ = ["Gather"]


@dataclass(frozen=True, slots=True)
class Gather:
    """The whole of a map (N, C, rows, columns); its adjoint sums everybody's gradients of a rank's own tile."""

    plans: Plans

    @classmethod
    def of(cls, cut: Cut) -> "Gather":
        """Every rank needs every pixel of a map that is cut so."""
        rows, cols = (AxisPlan(bounds, ((0, bounds[-1]),) * (len(bounds) - 1)) for bounds in cut.bounds)
        return cls((rows, cols))

    def __call__(self, tiles: Tiles, function: Function | None, /, x: Tensor) -> Tensor:
        """The map, the same on every rank."""
        return padded(tiles, x, view_of(self.plans, tiles))
