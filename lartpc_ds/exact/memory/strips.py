"""While blocks run on a strip, a mode knows which rows each map has, and makes every call right for them.

The mode sees every torch function that a block calls, in modules and in `forward` alike, so nothing runs on a strip
unseen: a rule (`strip_rules`) makes the call, or it is refused with its layer and line. Each block's forward is wrapped
and enters the mode itself, so that it stands inside whatever else is wrapped around the block, and works as well when
recomputation runs the block again from an autograd thread. Rows go from block to block by hand, not by the tensor,
because hooks (DeepSpeed's at stage 3, say) put another tensor in its place.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import RESHAPES, numbers_of, tensors_of
from lartpc_ds.exact.memory.rows import Rows
from lartpc_ds.exact.memory.strip_rules import JOINS, STRIP_RULES
from lartpc_ds.exact.memory.strip_windows import STRIP_WINDOW_RULES
from lartpc_ds.exact.ops.rules import changes_in_place
from lartpc_ds.exact.trace.compiled import uncompiled
from lartpc_ds.exact.trace.frames import autograd_function, checkpointed, where
from lartpc_ds.exact.trace.trace import DROPOUTS, LOOKS, UNSEEDED, canonical

__all__ = ["Note", "Strips"]

_HOOKS = frozenset({"register_hook", "retain_grad", "set"})

Note = tuple[str, str, str, tuple[Any, ...], tuple[Any, ...]]
"""A call: layer, line, function, its plain numbers, and where each tensor has its rows and how large it is beside."""


class Strips(TorchFunctionMode):
    """Follows one strip at a time through the blocks that it is given to as `around` (`parallel.modules`)."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] | None = None
        """A list: a plan is made or checked; note every call on a strip."""
        self.trail: list[Rows] = []
        """What each block of the last run gave."""
        self._rows: Any = WeakTensorKeyDictionary()  # no map may live longer because its rows are known
        self._passed: Rows | None = None
        self._stack: list[str] = []
        self._name = ""
        self._images: Tensor | None = None

    def run(self, blocks: Sequence[tuple[str, nn.Module]], x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        """Run blocks on a strip `x` of images that has `rows`; what they give, and which rows of it."""
        self._passed, self._images, self.trail = rows, _storage(x), []
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
        self._stack.append(name)
        try:
            if len(self._stack) > 1:
                return forward(*args, **kwargs)
            self._name = "the block"
            given = tensors_of(args, kwargs)
            if len(given) != 1:
                raise self.refuse(f"takes {len(given)} tensors; a streamed block takes one map")
            self.mark(given[0], self._passed)
            with uncompiled(), self:
                result = forward(*args, **kwargs)
            rows = self.rows_of(result)
            if rows is None:
                raise self.refuse("gives no map of which the rows are known; a streamed block gives one map")
            self._passed = rows
            return result
        finally:
            self._stack.pop()

    # what a rule asks (strip_site.StripSite)

    def rows_of(self, tensor: Any) -> Rows | None:
        """None for whole tensors, such as weights, and for anything else."""
        rows: Rows | None = self._rows.get(tensor) if isinstance(tensor, Tensor) else None
        return rows

    def mark(self, tensor: Tensor, rows: Rows) -> Tensor:
        """Say which rows a result has."""
        assert tensor.shape[rows.dim] == rows.count, (self._name, tuple(tensor.shape), rows)
        self._rows[tensor] = rows
        return tensor

    def refuse(self, reason: str) -> Exception:
        """The error for the call at hand."""
        return UserError(f"{self._stack[-1]} ({where()}): {self._name} {reason}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Rule or refusal for everything that touches a strip."""
        kwargs, self._name = kwargs or {}, canonical(func)
        if self._name in LOOKS or self._name in _HOOKS:
            return func(*args, **kwargs)
        if self._name in UNSEEDED and self._name not in DROPOUTS and kwargs.get("training", True):
            raise self.refuse("draws random numbers, which strips cannot share; end the front before it")
        tensors = tensors_of(args, kwargs)
        marked = [tensor for tensor in tensors if self.rows_of(tensor) is not None]
        if self._name == "get":
            return self._attribute(func, args)
        if not marked and self._name in STRIP_WINDOW_RULES and tensors and tensors[0].ndim == 4:
            raise self.refuse("is of a map of which the rows are not known")
        if not marked or self._name.startswith("new_"):  # x.new_zeros asks x for its dtype and device only
            return func(*args, **kwargs)
        self._check(func, args, kwargs, marked)
        if self.notes is not None:
            self._note(args, kwargs, tensors)
        try:
            return STRIP_RULES[self._name](self, func, *args, **kwargs)
        except (TypeError, IndexError) as error:
            raise self.refuse(f"is called in a way that is not covered on strips: {error}") from error

    def _check(self, func: Any, args: Any, kwargs: Any, marked: list[Tensor]) -> None:
        """What is refused whatever the function does."""
        if self._name not in STRIP_RULES:
            raise self.refuse(
                "has no proven form on strips of rows, which are for convolutions, max and average pools, padding and "
                "whatever acts on every pixel for itself; end the streamed front before it with memory.stream_until, "
                "or set memory.stream_strips = 1"
            )
        first = args[0] if args else kwargs.get("input")
        if self._name not in JOINS and any(one is not first for one in marked):
            raise self.refuse("takes a map that is cut into strips in place of a whole tensor")
        if changes_in_place(func, kwargs) and isinstance(first, Tensor) and _storage(first) is self._images:
            raise self.refuse("changes the images in place, whose rows are read by two strips; make it a copy")
        if self.notes is not None and (function := autograd_function()) is not None:
            raise self.refuse(
                f"is part of {function}, an autograd function of the model's own, whose backward may look at more than "
                "its strip; write it with torch's functions"
            )
        if self.notes is not None and checkpointed():
            raise self.refuse("runs in torch.utils.checkpoint, which a streamed front does already; leave it out")

    def _attribute(self, func: Any, args: Any) -> Any:
        result, rows = func(*args), self.rows_of(args[0])
        if rows is not None and isinstance(result, Tensor):
            if func.__self__.__name__ != "data":
                raise self.refuse(f"of the attribute {func.__self__.__name__} has no proven form on strips")
            self.mark(result, rows)
        return result

    def _note(self, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Reshapes have the strip's sizes; everything else must be as on the whole image."""
        assert self.notes is not None
        sizes = []
        for tensor in tensors:
            rows = self.rows_of(tensor)
            dim = None if rows is None else rows.dim
            sizes.append((dim, rows and rows.size, *(n for at, n in enumerate(tensor.shape) if at != dim)))
        numbers = () if self._name in RESHAPES else numbers_of(args, kwargs)
        self.notes.append((self._stack[-1], where(), self._name, numbers, tuple(sizes)))


def _storage(x: Tensor) -> Tensor:
    """The tensor that a view is of."""
    return x if x._base is None else x._base
