"""The other tiles of a rank's event, which exist in name only while one rank is traced.

They answer every message at once, and know when a real rank would have answered.
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.meter import Meter
from lartpc_ds.costs.roofline import all_gather_seconds, all_reduce_seconds, send_seconds
from lartpc_ds.exact.grid.tiles import Group, Wait

__all__ = ["ImaginedPeers"]


class ImaginedPeers(Group):
    """The group counts what the rank would wait for it beyond what the rank computes while messages travel."""

    def __init__(self, size: int, index: int, hardware: Hardware, ranks_per_node: int, meter: Meter) -> None:
        self.size, self.index = size, index
        self.meter = meter
        self._exposed_seconds = 0.0
        self._hardware, self._ranks_per_node = hardware, ranks_per_node

    def of_size(self, size: int) -> "ImaginedPeers":
        """Others, among which this rank is the first."""
        return ImaginedPeers(size, 0, self._hardware, self._ranks_per_node, self.meter)

    def take_exposed_seconds(self) -> float:
        """What the rank waited since it was asked last."""
        taken, self._exposed_seconds = self._exposed_seconds, 0.0
        return taken

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """As in the base class."""
        for _, tensor in (*outgoing, *incoming):
            self.meter.hold_halo(tensor)
        travel = max(self._seconds(outgoing), self._seconds(incoming))
        started, waited = self.meter.seconds, False

        def wait() -> list[Tensor]:
            nonlocal waited
            hidden = self.meter.seconds - started if self._hardware.overlaps else 0.0
            if not waited:
                self._exposed_seconds += max(travel - hidden, 0.0)
            waited = True
            return [tensor for _, tensor in incoming]

        return wait

    def _seconds(self, messages: Sequence[tuple[int, Tensor]]) -> float:
        links = self._hardware.within if self.size <= self._ranks_per_node else self._hardware.across
        return sum(send_seconds(tensor.nbytes, links) for _, tensor in messages)

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """As in the base class."""
        if self.size > 1:
            links = self._hardware.within, self._hardware.across
            self._exposed_seconds += all_reduce_seconds(values.nbytes, self.size, *links, self._ranks_per_node)
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """As in the base class."""
        if self.size > 1:
            links = self._hardware.within, self._hardware.across
            size = values.nbytes * self.size
            self._exposed_seconds += all_gather_seconds(size, self.size, *links, self._ranks_per_node)
        return values.new_empty(self.size, *values.shape)
