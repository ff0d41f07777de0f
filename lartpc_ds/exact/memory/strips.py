"""While the front of a network runs on a strip, a mode knows which rows each map has.

`exact.memory.front` says how such a mode works.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.memory.front import Front
from lartpc_ds.exact.ops.operator import STRIPS, Operator, Rule
from lartpc_ds.exact.ops.pointwise import changes_in_place

__all__ = ["Strips"]


class Strips(Front[Rows]):
    """Follows one strip at a time through the blocks that it is given to as `around` (`trace.modules`)."""

    words = STRIPS

    def __init__(self) -> None:
        super().__init__()
        self.trail: list[Rows] = []
        """The rows that each block of the last run gave."""
        self._images: Tensor | None = None

    def run(self, blocks: Sequence[tuple[str, nn.Module]], x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        """Run blocks on a strip `x` of images that has `rows`; return what they give, and which rows of it."""
        self._images, self.trail = x, []
        self.begin()
        try:
            for _, block in blocks:
                x, given = self.run_block(block, x, rows)
                assert given is not None
                rows = given
                self.trail.append(rows)
            return x, rows
        finally:
            self._images = None

    def _leave(self, result: Any) -> Rows:
        rows = self.rows_of(result)
        if rows is None:
            raise self.refuse("gives no map of which the rows are known; a streamed block gives one map")
        if self.notes is not None:
            self.note((), {}, [result])  # no later call of the front may read it
        return rows

    # The following methods answer a rule (StripCallSite).

    def rows_of(self, tensor: Any) -> Rows | None:
        """Return the rows of a tensor, or None for whole tensors, such as weights, and other values."""
        return self.part_of(tensor)

    def mark_rows(self, tensor: Tensor, rows: Rows) -> Tensor:
        """Note which rows a result has, and return it."""
        assert tensor.shape[rows.dim] == rows.count, (self._name, tuple(tensor.shape), rows)
        return self.mark_part(tensor, rows)

    def dims_of(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the dimension of the rows of a strip, or None."""
        rows = self.rows_of(tensor)
        return None if rows is None else (rows.dim,)

    def size_of(self, tensor: Any) -> tuple[int, ...]:
        """Return the number of rows of the whole map that a strip is part of."""
        rows = self.rows_of(tensor)
        assert rows is not None
        return (rows.size,)

    def cut_like(self, result: Tensor, source: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Note that a result has the rows of `source`, in its own dimension."""
        rows = self.rows_of(source)
        assert rows is not None
        return self.mark_rows(result, rows.moved(dims[0]))

    # The following methods make the calls.

    def _rule(self, operator: Operator) -> Rule | None:
        return operator.on_strips

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        super()._check(func, args, kwargs)
        first = args[0] if args else kwargs.get("input")
        changed = first if isinstance(first, Tensor) and changes_in_place(func, kwargs) else None
        if changed is not None and self._images is not None and _share_memory(changed, self._images):
            raise self.refuse("changes the images in place, whose rows are read by two strips; make it a copy")

    def _size(self, tensor: Tensor) -> tuple[Any, ...]:
        rows = self.rows_of(tensor)
        dim = None if rows is None else rows.dim
        return (dim, rows and rows.size, *(n for at, n in enumerate(tensor.shape) if at != dim))


def _share_memory(x: Tensor, y: Tensor) -> bool:
    """Tell whether two tensors are views of one, also through x.detach() or x.data."""
    return bool(x.untyped_storage()._cdata == y.untyped_storage()._cdata)
