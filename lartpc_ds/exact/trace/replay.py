"""At run time, the planned calls are made on tiles, and torch makes all others.

One mode serves a whole converted model. Each module's forward says that it runs, so that a call is looked up by
(module, function, shapes of its tensors), and by its numbers where these leave two plans. A call that would need a plan
and has none, because the model takes another way than when it was planned, is an error. Rejected: counting the calls,
because a block that recomputation runs once more would not find its plans.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import Call, Key, Run, key_of, numbers_of, tensors_of
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.ops.norms import LayerNorm
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.compiled import uncompiled
from lartpc_ds.exact.trace.following import Following, shared_numbers
from lartpc_ds.exact.trace.frames import where
from lartpc_ds.exact.trace.trace import GATHERED

__all__ = ["PlannedCalls", "Replay", "Seen", "table"]

_NEEDS_PLAN = frozenset(
    name for name, operator in OPERATORS.items() if operator.on_tiles is not None and not operator.may_be_unplanned
)


@dataclass
class PlannedCalls:
    """The planned calls of one module, as one rank makes them."""

    runs: dict[Key, Run | None] = field(default_factory=dict)
    apart: dict[Key, dict[tuple[Any, ...], Run | None]] = field(default_factory=dict)
    """Calls that shapes do not tell apart, by their numbers."""
    planned: set[str] = field(default_factory=set)
    """Functions with a call for which torch's own does not do the right thing."""
    cut: set[str] = field(default_factory=set)
    """Functions with a call that touches a tile."""
    any_shape: dict[str, Run] = field(default_factory=dict)
    """Functions that are made our way whatever the shapes are, because strips of a map have others than the map."""


_NO_CALLS = PlannedCalls()


class Seen(NamedTuple):
    """A call that was made, to compare with the trace."""

    owner: str
    key: Key
    numbers: tuple[Any, ...]
    run: Run | None
    """The plan of the call."""


class Replay(Following):
    """The mode that the outermost module enters when it runs.

    `calls` has the calls of each module as this rank makes them. If `lean` is true, some norms apply the ReLU that
    follows them, and their results are made again rather than kept.
    """

    def __init__(self, calls: dict[str, PlannedCalls], tiles: Tiles, *, lean: bool = False) -> None:
        super().__init__()
        self.tiles = tiles
        self._lean = lean
        self.seen: list[Seen] | None = None
        """If this is a list, every call is noted in it."""
        self._calls = calls

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        owner, name = self.owner, self._name
        if self._lean and name == "relu" and self.seen is None:
            x = args[0] if args else kwargs["input"]
            if self.tiles.remade.holds(x):
                return x  # the norm before it was a ReLU already
        known = self._calls.get(owner, _NO_CALLS)
        strict = self.seen is None and name in _NEEDS_PLAN and self.tiles.group.size > 1
        if self.seen is None and not strict and name not in known.planned:
            return func(*args, **kwargs)
        tensors = tensors_of(args, kwargs)
        key = key_of(name, tensors)
        run = known.runs.get(key)
        if key in known.apart:
            run = self._by_numbers(owner, name, known.apart[key], numbers_of(args, kwargs))
        if strict and run is None and key not in known.runs:
            self._refuse_unplanned(owner, name, known, tensors)
        if self.seen is not None:
            self.seen.append(Seen(owner, key, shared_numbers(name, run, numbers_of(args, kwargs)), run))
        if run is None:
            run = known.any_shape.get(name)
        return func(*args, **kwargs) if run is None else run(self.tiles, func, *args, **kwargs)

    def _by_numbers(
        self, owner: str, name: str, runs: dict[tuple[Any, ...], Run | None], numbers: tuple[Any, ...]
    ) -> Run | None:
        if numbers not in runs:
            raise UserError(
                f"{owner or 'the model'} ({where()}): {name} with the numbers {numbers} was not made when the tiles "
                f"were planned; for maps of this size it was made with {list(runs)}; do not compute the numbers from "
                "the size of the image"
            )
        return runs[numbers]

    def _refuse_unplanned(self, owner: str, name: str, known: PlannedCalls, tensors: list[Tensor]) -> None:
        """Refuse a call that no plan knows.

        Whole maps after a gather may do as they like; so may the flat parameters of an engine's hooks.
        """
        only_whole = any(key[0] == name for key in known.runs) and name not in known.cut | known.planned
        if only_whole or all(tensor.ndim < 3 for tensor in tensors):
            return
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise UserError(
            f"{owner or 'the model'} ({where()}): {name} of {shapes} was not made when the tiles were planned, so "
            "nothing is known about it; the model must make the same calls in every step (plan it in training mode to "
            "train it)"
        )

    def around(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module: gather its input if that is planned, and look its calls up under its name."""
        known = self._calls.get(name, _NO_CALLS)
        if GATHERED in known.planned:
            args, kwargs = tree_map_only(Tensor, lambda x: self._gathered(name, known, x), (args, kwargs))
        if self._stack:
            return super().around(name, forward, args, kwargs)
        with uncompiled(), self, self.tiles.remade.hooks() if self._lean else nullcontext():
            return super().around(name, forward, args, kwargs)

    def _gathered(self, name: str, known: PlannedCalls, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            key = key_of(GATHERED, [x])
            if self.seen is not None:
                self.seen.append(Seen(name, key, (), known.runs.get(key)))
            run = known.runs.get(key)
            return x if run is None else run(self.tiles, None, x)


def table(calls: Iterable[Call], row: int, col: int) -> dict[str, PlannedCalls]:
    """Return the planned calls as the rank at (row, col) makes them."""
    modules: dict[str, PlannedCalls] = {}
    for call in calls:
        known = modules.setdefault(call.owner, PlannedCalls())
        key = call.key(row, col)
        known.apart.setdefault(key, {})[call.all_numbers] = call.run
        known.runs[key] = call.run
        if call.run is not None:
            known.planned.add(call.name)
        if call.is_cut:
            known.cut.add(call.name)
        if isinstance(call.run, LayerNorm):
            known.any_shape[call.name] = call.run
    for known in modules.values():
        known.apart = {
            key: runs for key, runs in known.apart.items() if any(run != known.runs[key] for run in runs.values())
        }
    return modules
