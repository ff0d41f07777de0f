"""Who does what, on integers alone: the grid of ranks.

`world = pipe x data x rows x cols`, the rightmost axis varying fastest, so that the tiles of one event are neighbours
in rank order (and, later, on one node). No torch here: a login node can reason about a thousand ranks.
"""

from dataclasses import dataclass

from lartpc_ds.errors import UserError

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the axes; all at least 1."""

    pipe: int = 1
    data: int = 1
    rows: int = 1
    cols: int = 1

    def __str__(self) -> str:
        return f"pipe {self.pipe} x data {self.data} x rows {self.rows} x cols {self.cols}"

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.pipe * self.data * self.rows * self.cols

    def data_rank(self, rank: int) -> int:
        """Index of the tile group that `rank` belongs to."""
        assert 0 <= rank < self.world_size
        return rank // (self.rows * self.cols) % self.data

    @classmethod
    def fit(cls, devices: int, *, pipe: int = 1, data: int | None = None, rows: int = 1, cols: int = 1) -> "Layout":
        """The layout on `devices` ranks; `data` takes what the other axes leave.

        Raises:
            UserError: the axes do not multiply to `devices`.
        """
        inner = pipe * rows * cols
        layout = cls(pipe, devices // inner if data is None else data, rows, cols)
        if layout.data < 1 or layout.world_size != devices:
            wanted = inner if data is None else layout.world_size
            raise UserError(
                f"layout: pipe {pipe} x data {layout.data} x rows {rows} x cols {cols} needs {wanted} ranks"
                f"{' or a multiple' if data is None else ''}, but --devices is {devices}; change one of them"
            )
        return layout
