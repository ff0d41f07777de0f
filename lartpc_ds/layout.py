"""The grid of ranks, and the cut of an axis into tiles, in integers alone.

`world = pipe x data x rows x cols`, and the rightmost axis varies fastest, so that the tiles of one event are
neighbours in rank order and usually on one host. Torch is not imported here: a login node can reason about a thousand
ranks.
"""

from dataclasses import dataclass
from typing import NamedTuple

from lartpc_ds.errors import UserError

__all__ = ["Bounds", "Coordinates", "Layout", "tile_bounds"]

Bounds = tuple[int, ...]
"""The places where an axis of n pixels is cut, 0 = B_0 < B_1 < ... < B_P = n; position r owns [B_r, B_r+1)."""


class Coordinates(NamedTuple):
    """The position of a rank on the four axes."""

    pipe: int
    data: int
    row: int
    col: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of the four axes, each at least 1."""

    pipe: int = 1
    data: int = 1
    rows: int = 1
    cols: int = 1

    def __str__(self) -> str:
        return f"pipe {self.pipe} x data {self.data} x rows {self.rows} x cols {self.cols}"

    @property
    def world_size(self) -> int:
        """The number of ranks of the whole job."""
        return self.pipe * self.data * self.rows * self.cols

    @property
    def tiles(self) -> int:
        """The number of ranks that share one event."""
        return self.rows * self.cols

    def coordinates(self, rank: int) -> Coordinates:
        """The position of `rank` on the axes."""
        assert 0 <= rank < self.world_size, (rank, self)
        rest, col = divmod(rank, self.cols)
        rest, row = divmod(rest, self.rows)
        pipe, data = divmod(rest, self.data)
        return Coordinates(pipe, data, row, col)

    def rank(self, at: Coordinates) -> int:
        """The rank at a position; the inverse of `coordinates`."""
        return ((at.pipe * self.data + at.data) * self.rows + at.row) * self.cols + at.col

    def data_rank(self, rank: int) -> int:
        """The index of the tile group that `rank` belongs to."""
        return self.coordinates(rank).data

    def tile_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that share an event with `rank`, row by row."""
        first = rank - rank % self.tiles
        return tuple(range(first, first + self.tiles))

    def data_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same tile of other events, in the order of their data ranks."""
        at = self.coordinates(rank)
        return tuple(self.rank(at._replace(data=data)) for data in range(self.data))

    def stage_group(self, rank: int) -> tuple[int, ...]:
        """The ranks of the pipeline stage of `rank`: all tiles of all events."""
        stage_ranks = self.data * self.tiles
        first = rank - rank % stage_ranks
        return tuple(range(first, first + stage_ranks))

    def pipe_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same tile of the same events in all stages, first stage first."""
        at = self.coordinates(rank)
        return tuple(self.rank(at._replace(pipe=pipe)) for pipe in range(self.pipe))

    @classmethod
    def fit(
        cls,
        devices: int,
        *,
        pipe: int = 1,
        data: int | None = None,
        rows: int = 1,
        cols: int = 1,
        source: str = "--devices",
    ) -> "Layout":
        """The layout on `devices` ranks, a number that `source` gave; `data` is by default what the other axes leave.

        Raises:
            UserError: the product of the axes is not `devices`.
        """
        inner = pipe * rows * cols
        layout = cls(pipe, devices // inner if data is None else data, rows, cols)
        if layout.data < 1 or layout.world_size != devices:
            wanted = inner if data is None else layout.world_size
            raise UserError(
                f"layout: pipe {pipe} x data {layout.data} x rows {rows} x cols {cols} needs {wanted} ranks"
                f"{' or a multiple' if data is None else ''}, but {source} is {devices}; change one of them"
            )
        return layout


def tile_bounds(size: int, parts: int) -> Bounds:
    """Cut `size` pixels into `parts` tiles of nearly equal work.

    Inner bounds are multiples of the largest power of two, up to 32, that changes no tile by more than about 2 % of
    its pixels. Then the strides of the network cut evenly, too: strided layers need no special rows at a seam.

    Raises:
        UserError: there are fewer pixels than tiles.
    """
    if size < parts:
        raise UserError(f"layout: {size} pixels cannot be cut into {parts} tiles; take fewer rows or cols")
    grain = 32
    while grain > 1 and grain * 50 * parts > size:
        grain //= 2
    inner = (round(size * part / parts / grain) * grain for part in range(1, parts))
    return (0, *inner, size)
