"""While blocks run on a strip, a mode knows which rows each map has, and makes every call right for them.

Nothing runs on a strip unseen: the rule of its function (`ops.table`) makes a call, or it is refused with its layer and
line. Each block's forward is wrapped and enters the mode itself, so that it stands inside whatever else is wrapped
around the block, and works as well when recomputation runs the block again from an autograd thread. Rows go from block
to block by hand. Rejected: passing them by the tensor, because hooks (DeepSpeed's at stage 3, say) put another tensor
in its place.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lartpc_ds.exact.grid.cuts import numbers_of, tensors_of
from lartpc_ds.exact.grid.rows import Rows
from lartpc_ds.exact.ops.operator import STRIPS, Numbers
from lartpc_ds.exact.ops.pointwise import changes_in_place
from lartpc_ds.exact.ops.randomness import draws_unseeded
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.compiled import uncompiled
from lartpc_ds.exact.trace.following import Following, shared_numbers
from lartpc_ds.exact.trace.frames import autograd_function, checkpointed, where

__all__ = ["Note", "Strips"]

_HOOKS = frozenset({"register_hook", "retain_grad", "set"})
_SIZES_ONLY = frozenset("new_empty new_zeros new_ones empty zeros ones".split())
"""Functions whose numbers are the size of a new tensor; where the size matters, it is refused when it meets a map."""

Note = tuple[str, str, str, tuple[Any, ...], tuple[Any, ...]]
"""A call: layer, line, function, its plain numbers, and where each tensor has its rows and its other sizes."""


class Strips(Following):
    """Follows one strip at a time through the blocks that it is given to as `around` (`trace.modules`)."""

    words = STRIPS

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] | None = None
        """If this is a list, a plan is made or checked, and every call on a strip is noted in it."""
        self.trail: list[Rows] = []
        """The rows that each block of the last run gave."""
        self._rows: Any = WeakTensorKeyDictionary()  # no map may live longer because its rows are known
        self._passed: Rows | None = None
        self._images: Tensor | None = None

    def run(self, blocks: Sequence[tuple[str, nn.Module]], x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        """Run blocks on a strip `x` of images that has `rows`; return what they give, and which rows of it."""
        self._passed, self._images, self.trail = rows, x, []
        self._rows = WeakTensorKeyDictionary()  # a map that a model has kept from another strip is unknown in this one
        try:
            for _, block in blocks:
                x = block(x)
                self.trail.append(self._passed)
            return x, self._passed
        finally:
            self._passed = self._images = None

    def around(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module: the outermost one enters the mode; outside `run`, all are as they were."""
        if self._passed is None:
            return forward(*args, **kwargs)
        return super().around(name, forward if self._stack else self._block(forward), args, kwargs)

    def _block(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._name = "the block"
            given = tensors_of(args, kwargs)
            if len(given) != 1:
                raise self.refuse(f"takes {len(given)} tensors; a streamed block takes one map")
            assert self._passed is not None
            self.mark_rows(given[0], self._passed)
            with uncompiled(), self:
                result = forward(*args, **kwargs)
            rows, self._name = self.rows_of(result), "the block"
            if rows is None:
                raise self.refuse("gives no map of which the rows are known; a streamed block gives one map")
            if self.notes is not None:
                self._note((), {}, [result])  # no later call of the front may read it
            self._passed = rows
            return result

        return run

    # The following methods answer a rule (StripCallSite).

    def rows_of(self, tensor: Any) -> Rows | None:
        """Return the rows of a tensor, or None for whole tensors, such as weights, and other values."""
        rows: Rows | None = self._rows.get(tensor) if isinstance(tensor, Tensor) else None
        return rows

    def mark_rows(self, tensor: Tensor, rows: Rows) -> Tensor:
        """Note which rows a result has, and return it."""
        assert tensor.shape[rows.dim] == rows.count, (self._name, tuple(tensor.shape), rows)
        self._rows[tensor] = rows
        return tensor

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

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._name in _HOOKS:
            return func(*args, **kwargs)
        if draws_unseeded(self._name, args, kwargs):
            raise self.refuse("draws random numbers, which strips cannot share; end the front before it")
        tensors, operator = tensors_of(args, kwargs), OPERATORS.get(self._name)
        marked = any(self.rows_of(tensor) is not None for tensor in tensors)
        windowed = operator is not None and operator.numbers is Numbers.PLANNED and operator.on_strips is not None
        if not marked and windowed and tensors and tensors[0].ndim == 4:
            raise self.refuse("is of a map of which the rows are not known")
        if self.notes is not None and self._name not in _SIZES_ONLY:
            self._note(args, kwargs, tensors)  # also calls on constants, which may depend on the size of the image
        if not marked or self._name.startswith("new_"):  # x.new_zeros asks x for its dtype and device only
            return func(*args, **kwargs)
        self._check(func, args, kwargs)
        return self._by_rule(operator, None if operator is None else operator.on_strips, func, args, kwargs)[0]

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse a call that no rule could make right."""
        first = args[0] if args else kwargs.get("input")
        changed = first if isinstance(first, Tensor) and changes_in_place(func, kwargs) else None
        if changed is not None and self._images is not None and _share_memory(changed, self._images):
            raise self.refuse("changes the images in place, whose rows are read by two strips; make it a copy")
        if self.notes is not None and (function := autograd_function()) is not None:
            raise self.refuse(
                f"is part of {function}, an autograd function of the model's own, whose backward may look at more than "
                "its strip; write it with torch's functions"
            )
        if self.notes is not None and checkpointed():
            raise self.refuse("runs in torch.utils.checkpoint, which a streamed front does already; leave it out")

    def _note(self, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Note a call; reshapes have the strip's sizes, and everything else must be as on the whole image."""
        assert self.notes is not None
        sizes = []
        for tensor in tensors:
            rows = self.rows_of(tensor)
            dim = None if rows is None else rows.dim
            sizes.append((dim, rows and rows.size, *(n for at, n in enumerate(tensor.shape) if at != dim)))
        numbers = shared_numbers(self._name, None, numbers_of(args, kwargs))
        self.notes.append((self.owner, where(), self._name, numbers, tuple(sizes)))


def _share_memory(x: Tensor, y: Tensor) -> bool:
    """Tell whether two tensors are views of one, also through x.detach() or x.data."""
    return bool(x.untyped_storage()._cdata == y.untyped_storage()._cdata)
