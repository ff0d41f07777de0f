"""The process groups of one rank, built once and passed on as an argument.

The only place that reads RANK, LOCAL_RANK and WORLD_SIZE. Nothing here is global: a test can hold two sets at once, and
a group of size 1 takes the same path as any other.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lartpc_ds.layout import Layout

__all__ = ["Groups", "make_groups"]


@dataclass(frozen=True, slots=True)
class Groups:
    """Who this rank is. `data` joins the ranks that hold the same tile of different events."""

    layout: Layout
    rank: int
    local_rank: int
    data: dist.ProcessGroup

    @property
    def data_rank(self) -> int:
        """Index of this rank's tile group."""
        return self.layout.data_rank(self.rank)

    def gather_rows(self, row: Sequence[float], device: torch.device) -> torch.Tensor:
        """Every rank's row of numbers, (world, len(row)) float64 on the host: one small collective for all of them."""
        mine = torch.tensor(row, dtype=torch.float64, device=device)
        rows = [torch.empty_like(mine) for _ in range(self.layout.world_size)]
        dist.all_gather(rows, mine)
        return torch.stack(rows).cpu()


def make_groups(layout: Layout) -> Groups:
    """The groups of this rank; torch.distributed must be initialised on exactly the layout's ranks."""
    assert dist.get_world_size() == layout.world_size, (dist.get_world_size(), layout)
    group = dist.group.WORLD
    assert group is not None
    # with the data axis alone, the world is the data group
    return Groups(layout, dist.get_rank(), int(os.environ["LOCAL_RANK"]), group)
