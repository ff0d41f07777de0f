"""While blocks of a network's front run on a part of a map, a mode knows which part each tensor is.

Nothing runs there unseen: the rule of a function (`ops.table`) makes a call, or it is refused with its layer and line.
Each block's forward is wrapped and enters the mode itself, so that it stands inside whatever else is wrapped around the
block, and works as well when recomputation runs the block again from an autograd thread. Which part a block is given
goes to it by hand, as a second argument, and which part it gives comes back by hand. Rejected: passing this with the
tensor, because hooks (DeepSpeed's at stage 3, say) put another tensor in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lartpc_ds.exact.grid.cuts import numbers_of, tensors_of
from lartpc_ds.exact.ops.operator import Numbers, Operator, Rule
from lartpc_ds.exact.ops.randomness import draws_unseeded
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.compiled import uncompiled
from lartpc_ds.exact.trace.following import Following, shared_numbers
from lartpc_ds.exact.trace.frames import autograd_function, checkpointed, where

__all__ = ["UNNOTED", "Front", "Note"]

_HOOKS = frozenset({"register_hook", "retain_grad", "set"})
_SIZES_ONLY = frozenset("new_empty new_zeros new_ones empty zeros ones".split())
"""Functions whose numbers are the size of a new tensor; where the size matters, it is refused when it meets a map."""

UNNOTED = _HOOKS | _SIZES_ONLY
"""Functions whose calls may differ from part to part."""

Note = tuple[str, str, str, tuple[Any, ...], tuple[Any, ...]]
"""A call: layer, line, function, its plain numbers, and what must be the same of its tensors on every part."""

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class _Carried(Generic[Part]):
    """The part of the map that a block is given, as the block's second argument."""

    part: Part


class Front(Following, Generic[Part]):
    """Follows the blocks that are given to it as `around` (`trace.modules`)."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] | None = None
        """If this is a list, a plan is made or checked, and every call is noted in it."""
        self._parts: Any = WeakTensorKeyDictionary()  # no map may live longer because its part is known
        self._given: Part | None = None

    def begin(self) -> None:
        """Forget all tensors: a map that a model has kept from another run is unknown in this one."""
        self._parts = WeakTensorKeyDictionary()

    def run_block(self, block: nn.Module, x: Tensor, part: Part) -> tuple[Any, Part | None]:
        """Run a block on a part of its map; return what it gives, and which part of a map that is, if any."""
        y = block(x, _Carried(part))
        given, self._given = self._given, None
        return y, given

    def around(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module: the outermost one enters the mode, if it is given a part; otherwise all are as they were."""
        if self._stack:
            return super().around(name, forward, args, kwargs)
        if not any(isinstance(value, _Carried) for value in args):
            return forward(*args, **kwargs)
        return super().around(name, self._block(forward), args, kwargs)

    def _block(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            (part,) = (value.part for value in args if isinstance(value, _Carried))
            args = tuple(value for value in args if not isinstance(value, _Carried))
            self._name = "the block"
            given = tensors_of(args, kwargs)
            if len(given) != 1:
                raise self.refuse(f"takes {len(given)} tensors; a block on {self.words.parts} takes one map")
            self.mark_part(given[0], part)
            with uncompiled(), self:
                result = forward(*args, **kwargs)
            self._name = "the block"
            self._given = self._leave(result)
            return result

        return run

    # Subclasses say what a part is.

    def mark_part(self, tensor: Tensor, part: Part) -> Tensor:
        """Note which part of a map a tensor is, and return it."""
        self._parts[tensor] = part
        return tensor

    def part_of(self, tensor: Any) -> Part | None:
        """Return which part of a map a tensor is, or None for whole tensors, such as weights, and other values."""
        part: Part | None = self._parts.get(tensor) if isinstance(tensor, Tensor) else None
        return part

    def _rule(self, operator: Operator) -> Rule | None:
        raise NotImplementedError

    def _leave(self, result: Any) -> Part | None:
        """Return which part of a map a block gives."""
        raise NotImplementedError

    def _size(self, tensor: Tensor) -> tuple[Any, ...]:
        """Return what must be the same of a tensor on every part."""
        raise NotImplementedError

    # The following methods make the calls.

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._name in _HOOKS:
            return func(*args, **kwargs)
        if draws_unseeded(self._name, args, kwargs):
            raise self.refuse(f"draws random numbers, which {self.words.parts} cannot share; {self.words.way_out}")
        tensors, operator = tensors_of(args, kwargs), OPERATORS.get(self._name)
        rule = None if operator is None else self._rule(operator)
        marked = any(self.part_of(tensor) is not None for tensor in tensors)
        windowed = operator is not None and operator.numbers is Numbers.PLANNED and rule is not None
        if not marked and windowed and tensors and tensors[0].ndim == 4 and self._unknown(tensors[0]):
            raise self.refuse(f"is of a map of which the {self.words.parts} are not known")
        if self.notes is not None and self._name not in _SIZES_ONLY:
            self.note(args, kwargs, tensors)  # also calls on constants, which may depend on the size of the image
        if not marked or self._name.startswith("new_"):  # x.new_zeros asks x for its dtype and device only
            return func(*args, **kwargs)
        self._check(func, args, kwargs)
        return self._by_rule(operator, rule, func, args, kwargs)[0]

    def _unknown(self, x: Tensor) -> bool:
        """Return whether a map that nobody has marked may be a part of one."""
        return True

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse a call that no rule could make right."""
        if self.notes is not None and (function := autograd_function()) is not None:
            raise self.refuse(
                f"is part of {function}, an autograd function of the model's own, whose backward may look at more than "
                f"its {self.words.part}; write it with torch's functions"
            )
        if self.notes is not None and checkpointed():
            raise self.refuse(
                "runs in torch.utils.checkpoint; leave it out, and set memory.recompute where you need it"
            )

    def note(self, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Note a call; reshapes have the sizes of the part, and everything else must be as on the whole image."""
        assert self.notes is not None
        numbers = shared_numbers(self._name, None, numbers_of(args, kwargs))
        self.notes.append((self.owner, where(), self._name, numbers, tuple(map(self._size, tensors))))
