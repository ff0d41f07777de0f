"""The process groups of one rank, which are built once and passed on as an argument.

Nothing here is global: a test can hold two sets at once, and a group of one rank takes the same path as any other.
Rejected: functions that ask torch.distributed for the groups, which would allow one layout per process.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from lartpc_ds.exact.grid.tiles import Clock, Live, Tiles, Traffic
from lartpc_ds.layout import Layout

__all__ = ["Groups", "make_groups"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups that this rank belongs to.

    `tile` joins the ranks that share this rank's event, and `data` those that hold the same tile of other events.
    `stage` joins all ranks of this pipeline stage, and `pipe` those that hold the same tile of the same events in other
    stages. `alone` is this rank by itself.
    """

    layout: Layout
    rank: int
    local_rank: int
    tile: dist.ProcessGroup
    data: dist.ProcessGroup
    alone: dist.ProcessGroup
    stage: dist.ProcessGroup
    pipe: dist.ProcessGroup

    @property
    def data_rank(self) -> int:
        """The index of this rank's tile group."""
        return self.layout.data_rank(self.rank)

    @property
    def leads(self) -> bool:
        """Whether this is the first rank of its tile group, which speaks for the group's events."""
        return self.rank % self.layout.tiles == 0

    def tiles(self, *, norm_scope: str = "tiles", overlap: bool = True, clock: Clock | None = None) -> Tiles:
        """Return what converted layers need to know about this rank."""
        traffic, layout = Traffic(), self.layout
        group, norm, whole_norm = (
            Live(ranks, traffic)
            for ranks in (self.tile, *((self.stage, self.data) if norm_scope == "all" else (self.tile, self.alone)))
        )
        return Tiles(layout.rows, layout.cols, group, norm, whole_norm, overlap, clock or Clock(), traffic)

    def gather_rows(self, row: Sequence[float], device: torch.device) -> torch.Tensor:
        """Return every rank's row of numbers, (world, len(row)) in float64 on the host, by one small collective."""
        mine = torch.tensor(row, dtype=torch.float64, device=device)
        rows = [torch.empty_like(mine) for _ in range(self.layout.world_size)]
        dist.all_gather(rows, mine)
        return torch.stack(rows).cpu()

    def from_last_stage(self, value: T) -> T:
        """Return the last stage's value on all stages; it must be plain data or tensors on the host."""
        values = [value]
        dist.broadcast_object_list(values, src=self.layout.pipe_group(self.rank)[-1], group=self.pipe)
        return values[0]


def make_groups(layout: Layout) -> Groups:
    """Make the groups of this rank; torch.distributed must be initialised on exactly the layout's ranks."""
    assert dist.get_world_size() == layout.world_size, (dist.get_world_size(), layout)
    rank, world = dist.get_rank(), dist.group.WORLD
    assert world is not None
    made = {tuple(range(layout.world_size)): world}
    kinds: list[Callable[[int], tuple[int, ...]]] = [layout.tile_group, layout.data_group, lambda member: (member,)]
    kinds += [layout.stage_group, layout.pipe_group]
    for members in kinds:
        # every rank must make every group, in the same order
        for ranks in sorted({members(member) for member in range(layout.world_size)}):
            if ranks not in made:
                made[ranks] = dist.new_group(list(ranks))
    tile, data, alone, stage, pipe = (made[members(rank)] for members in kinds)
    return Groups(layout, rank, int(os.environ["LOCAL_RANK"]), tile, data, alone, stage, pipe)
