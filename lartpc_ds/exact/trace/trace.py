"""A model runs once on meta tensors of the whole image; its calls are noted, and how each must be made on tiles.

A rule plans each call on a map that is cut; what has no rule is refused before any process starts. The notes are the
program of the model: which calls it makes, on what, and who reads what they give. Rejected: torch.fx and torch.export,
which cannot follow every `forward`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import Call, Cut, numbers_of, tensors_of
from lartpc_ds.exact.ops.gathering import Gather
from lartpc_ds.exact.ops.operator import Result, map_cut
from lartpc_ds.exact.ops.randomness import draws_unseeded
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.following import Following, shared_numbers
from lartpc_ds.exact.trace.frames import autograd_function, in_checkpoint, where
from lartpc_ds.exact.trace.modules import announced

__all__ = ["GATHERED", "Tracer"]

GATHERED = "gathered input"
"""The name under which a gather is noted among the calls."""


class Tracer(Following):
    """Notes the calls of one run."""

    def __init__(self, *, refuse_thin: bool = False, one_tile: bool = False) -> None:
        """Start with no calls; `TileCallSite` explains the arguments.

        With `one_tile` only masks and levers need plans, and nothing is refused.
        """
        super().__init__()
        self.refuse_thin, self.one_tile = refuse_thin, one_tile
        self.calls: list[Call] = []
        self._cuts: dict[int, Cut | None] = {}
        self._numbers: dict[int, tuple[Tensor, int]] = {}  # it holds the tensors, so that no id is used twice
        self._draws: Counter[str] = Counter()
        self._gather_at: str | None = None

    # The following methods answer a rule (TileCallSite).

    def cut_of(self, tensor: Any) -> Cut | None:
        """Return how a tensor is cut, or None."""
        return self._cuts.get(id(tensor))

    def mark(self, tensor: Tensor, cut: Cut | None) -> Tensor:
        """Note how a tensor is cut, and return it."""
        self.number_of(tensor)
        self._cuts[id(tensor)] = cut
        return tensor

    def dims_of(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the row and the column dimension of a map that is cut."""
        cut = self.cut_of(tensor)
        return None if cut is None else cut.dims

    def size_of(self, tensor: Any) -> tuple[int, ...]:
        """Return the rows and columns of a whole map that is cut."""
        cut = self.cut_of(tensor)
        assert cut is not None
        return cut.size

    def cut_like(self, result: Tensor, source: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Note that a result is cut as `source` is, in its own dimensions `dims`."""
        cut = self.cut_of(source)
        assert cut is not None
        return self.mark(result, Cut((dims[0], dims[1]), cut.bounds))

    def next_draw(self) -> str:
        """Return a name for the random numbers of the call at hand."""
        self._draws[self.owner] += 1
        return f"{self.owner}#{self._draws[self.owner] - 1}"

    # The following methods run the model.

    def number_of(self, tensor: Tensor) -> int:
        """Return the number of a tensor in the program."""
        return self._numbers.setdefault(id(tensor), (tensor, len(self._numbers)))[1]

    @contextmanager
    def inside(self, model: nn.Module, gather_at: str | None) -> Iterator[None]:
        """Follow which module runs, and gather what enters `gather_at`."""
        self._gather_at = gather_at
        with self, announced(model, self.around):
            yield

    def around(self, name: str, forward: Any, args: Any, kwargs: Any) -> Any:
        """Run a module, after its input is gathered if so asked."""
        if name == self._gather_at:
            args, kwargs = tree_map_only(Tensor, lambda x: self._gathered(name, x), (args, kwargs))
        return super().around(name, forward, args, kwargs)

    def _gathered(self, name: str, x: Tensor) -> Tensor:
        cut, run, reads = self.cut_of(x), None, (self.number_of(x),)
        with torch._C.DisableTorchFunction():
            before = ((tuple(x.shape), cut),)
            if cut is not None and not self.one_tile:
                self._name = "gathering its input"
                run = Gather.of(map_cut(self, x))
                x = x.detach()  # this makes another tensor, without a cut
        self.calls.append(Call(name, GATHERED, where(), before, run, reads=reads, gives=(self.number_of(x),)))
        return x

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = tensors_of(args, kwargs)
        before = tuple((tuple(tensor.shape), self.cut_of(tensor)) for tensor in tensors)
        reads = tuple(self.number_of(tensor) for tensor in tensors)
        result, run = self._planned(func, args, kwargs, any(cut is not None for _, cut in before))
        if run is not None and in_checkpoint():
            if not self.one_tile:
                raise self.refuse(
                    "runs in a function given to torch.utils.checkpoint, whose second run finds no plan; give it a "
                    "module"
                )
            run = None
        all_numbers = numbers_of(args, kwargs)
        results, source = tensors_of((result,), {}), args[0] if args else kwargs.get("input")
        self.calls.append(
            Call(
                self.owner,
                self._name,
                where(),
                before,
                run,
                shared_numbers(self._name, run, all_numbers),
                all_numbers,
                reads,
                tuple(self.number_of(tensor) for tensor in results),
                source.numel() if isinstance(source, Tensor) else 0,
                sum(tensor.numel() for tensor in results),
            )
        )
        return result

    def _planned(self, func: Any, args: Any, kwargs: Any, is_cut: bool) -> Result:
        operator = OPERATORS.get(self._name)
        on_whole = None if operator is None else operator.on_whole
        if on_whole is None and not self.one_tile and draws_unseeded(self._name, args, kwargs):
            raise self.refuse(
                "draws random numbers that differ from rank to rank; use dropout, or Tensor.bernoulli_ for whole events"
            )
        if self._name.startswith("new_") or (not is_cut and on_whole is None):
            return func(*args, **kwargs), None  # x.new_zeros asks x for its dtype and device only
        if is_cut and not self.one_tile and (function := autograd_function()) is not None:
            raise self.refuse(
                f"is part of {function}, an autograd function of the model's own, whose backward cannot be planned; "
                "write it with torch's functions, or leave the tiles before it with layout.gather_at"
            )
        rule = on_whole if not is_cut else None if operator is None else operator.on_tiles
        try:
            return self._by_rule(operator, rule, func, args, kwargs)
        except UserError:
            if self.one_tile:
                return func(*args, **kwargs), None  # the one tile is the whole image
            raise
