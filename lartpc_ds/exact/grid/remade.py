"""Some maps are made again in the backward pass, from another map that is kept anyway, instead of keeping both.

A norm keeps its input, so its output, also after a ReLU, need not be kept for the layer that reads it. That layer is
torch's own and saves what it reads; a hook on saved tensors puts a recipe in the place of a map that has one. A map is
known by its storage and version, because autograd hands the hook an alias, not the tensor that was noted. Rejected:
fusing each norm with the layer that follows, which would need a fused form of every layer.

Inside `torch.utils.checkpoint` that function's own hooks come first, and nothing is kept anyway.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Recipe", "Remade", "own_copy"]

Recipe = Callable[[], Tensor]
"""A function that makes a map again, with the strides that it had."""


@dataclass(frozen=True, slots=True)
class _Noted:
    storage: StorageWeakRef
    """While this reference exists, no other storage has the same address."""
    version: int
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class _View:
    """A saved tensor as a view of a map that will be made again."""

    recipe: Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        return self.recipe().as_strided(self.size, self.stride, self.offset)


def _view(noted: _Noted, tensor: Tensor) -> _View:
    return _View(noted.recipe, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


@overload
def own_copy(parameter: Tensor) -> Tensor: ...
@overload
def own_copy(parameter: Tensor | None) -> Tensor | None: ...
def own_copy(parameter: Tensor | None) -> Tensor | None:
    """Return a copy for a recipe; a sharding engine takes a parameter away before a later layer asks for the map."""
    return None if parameter is None else parameter.detach().clone()


class Remade:
    """The maps that have a recipe, as long as they live."""

    def __init__(self) -> None:
        self._noted: dict[int, _Noted] = {}
        self._suspended = False

    def note(self, y: Tensor, recipe: Recipe) -> Tensor:
        """Note that from now on a layer that saves y, or a view of it, saves the recipe instead."""
        self._forget_dead()
        if torch._C._current_graph_task_id() != -1:
            recipe = _unused  # without our hooks nobody asks for the map, and x must not be kept for it
        storage = y.untyped_storage()
        self._noted[storage._cdata] = _Noted(StorageWeakRef(storage), y._version, recipe)  # type: ignore[no-untyped-call]
        return y

    def holds(self, y: Tensor) -> bool:
        """Return whether y has a recipe and still has the values that it had when it was noted."""
        return self._noted_of(y) is not None

    def again(self, x: Tensor) -> Recipe:
        """Return a way to x that keeps as little as possible: its recipe, or x itself."""
        noted, kept = self._noted_of(x), x.detach()
        if noted is None:
            return lambda: kept
        return _view(noted, x).tensor

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Inside, saved tensors go through this object.

        In a backward pass they do not, because a recomputation has hooks of its own.
        """
        if self._suspended or not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            yield
            return
        with saved_tensors_hooks(self._pack, _unpack):
            yield
        self._forget_dead()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, `hooks` does nothing.

        Of two pairs of hooks the inner one counts, and the pair of a checkpoint would be the outer one.
        """
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def _noted_of(self, y: Tensor) -> _Noted | None:
        noted = self._noted.get(y.untyped_storage()._cdata)
        return noted if noted is not None and noted.version == y._version else None

    def _pack(self, tensor: Tensor) -> Any:
        noted = self._noted_of(tensor)
        return tensor if noted is None else _view(noted, tensor)

    def _forget_dead(self) -> None:
        dead = [key for key, noted in self._noted.items() if noted.storage.expired()]  # type: ignore[no-untyped-call]
        for key in dead:
            del self._noted[key]


def _unused() -> Tensor:
    raise AssertionError("a map of a recomputation is not made again")


def _unpack(packed: Any) -> Tensor:
    tensor: Tensor = packed.tensor() if isinstance(packed, _View) else packed
    return tensor
