"""What modules hold beside their parameters, so that another run can start where one started.

A batch norm moves its running statistics in its forward pass, a spectral norm the vectors of its power iteration, and a
layer of somebody's own may count its calls. For a run that must repeat another, buffers and attributes get the values
from before the first one in place of today's. They are exchanged, never written to: what autograd has saved of a buffer
stays as it is. Of a large buffer that a run did not change no copy is kept. Rejected: to restore buffers by writing to
them, which misses attributes and replaced buffers and spoils what frozen norms have saved.

An object of some other kind (a helper class that counts) is not looked into.
"""

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lartpc_ds.exact.grid.pieces import has_no_data

__all__ = ["ModuleState", "unchanged"]

_TORCHS = frozenset(vars(nn.Module())) - {"training"}
_ENGINES = ("ds_", "_external_params", "applied_pre_backward_ref_cnt", "pre_bwd_fn", "post_bwd_fn")
"""Attributes in which DeepSpeed counts the calls of its hooks, of which a second run is one more."""
_SMALL_BYTES = 1 << 16
"""Of a buffer whose copy is kept whether it changes or not."""

Attributes = dict[str, Any]


@dataclass(slots=True)
class _Kept:
    """A buffer before a run: itself, its version, and a copy if it is small or the run changed it."""

    buffer: Tensor
    version: int
    values: Tensor | None

    def changed(self) -> bool:
        """By its version, which writing to `buffer.data` does not change, and so by its values; a trace has none."""
        if self.buffer._version != self.version or self.values is None or has_no_data(self.buffer):
            return self.buffer._version != self.version
        return not torch.equal(self.buffer, self.values)


class ModuleState:
    """Of a module and all within, when it is made; `put_back` and `leave` surround a run that starts from it."""

    def __init__(self, module: nn.Module) -> None:
        names, self._modules = zip(*module.named_modules(), strict=True)
        self._names = [f"{name}." if name else "" for name in names]
        self._attributes = [_frozen(_attributes(one)) for one in self._modules]
        self._versions = [_versions(attributes) for attributes in self._attributes]
        self._places = [dict(one._buffers) for one in self._modules]
        buffers = {id(buffer): buffer for place in self._places for buffer in place.values() if buffer is not None}
        self._kept = {key: _Kept(one, one._version, one.detach().clone()) for key, one in buffers.items()}
        self._now: list[tuple[Attributes, dict[str, Tensor | None]]] = []

    def settle(self) -> list[str]:
        """A run has ended: keep no copy that is not needed.

        Returns the attributes with tensors that it changed in place, whose values are lost because they are no buffers.
        """
        for kept in self._kept.values():
            if kept.buffer.nbytes > _SMALL_BYTES and not kept.changed():
                kept.values = None
        return [
            prefix + name
            for prefix, attributes, versions in zip(self._names, self._attributes, self._versions, strict=True)
            for name, version in _versions(attributes).items()
            if version != versions[name]
        ]

    def lost(self) -> list[str]:
        """Buffers that the run left as they were and that somebody has changed since."""
        gone = {key for key, kept in self._kept.items() if kept.values is None and kept.changed()}
        places = zip(self._names, self._places, strict=True)
        return [prefix + name for prefix, place in places for name, one in place.items() if id(one) in gone]

    def changes(self) -> list[str]:
        """Before `settle`: buffers, and attributes that are numbers, which are others than they were."""
        found = []
        for prefix, module, attributes, place in zip(
            self._names, self._modules, self._attributes, self._places, strict=True
        ):
            now = _attributes(module)
            found += [prefix + name for name in now if _number(now[name]) != _number(attributes.get(name))]
            for name, buffer in module._buffers.items():
                if place.get(name) is not buffer or (buffer is not None and self._kept[id(buffer)].changed()):
                    found.append(prefix + name)
        return found

    def put_back(self) -> None:
        """The modules hold what they held when this was made."""
        self._now = [(_attributes(module), dict(module._buffers)) for module in self._modules]
        values = {key: kept.buffer if kept.values is None else kept.values.clone() for key, kept in self._kept.items()}
        for module, attributes, place in zip(self._modules, self._attributes, self._places, strict=True):
            _set(module, _frozen(attributes), {name: values.get(id(one), one) for name, one in place.items()})

    def leave(self) -> None:
        """They hold again what they held before `put_back`."""
        for module, (attributes, buffers) in zip(self._modules, self._now, strict=True):
            _set(module, attributes, buffers)
        self._now = []


@contextmanager
def unchanged(module: nn.Module) -> Iterator[ModuleState]:
    """After it the module holds what it held before: for a run that is only looked at."""
    state = ModuleState(module)
    try:
        yield state
    finally:
        state.put_back()


def _attributes(module: nn.Module) -> Attributes:
    """What is no parameter, buffer, submodule or hook."""
    return {key: one for key, one in vars(module).items() if key not in _TORCHS and not key.startswith(_ENGINES)}


def _set(module: nn.Module, attributes: Attributes, buffers: dict[str, Tensor | None]) -> None:
    for name in _attributes(module).keys() - attributes.keys():
        del vars(module)[name]
    vars(module).update(attributes)
    module._buffers.clear()
    module._buffers.update(buffers)


def _frozen(attributes: Attributes) -> Attributes:
    """Containers are copied; tensors without the graph behind them, which would keep the step before alive."""
    return {name: _frozen_value(value) for name, value in attributes.items()}


def _frozen_value(value: Any) -> Any:
    if isinstance(value, set | np.ndarray):
        return copy.copy(value)
    if isinstance(value, Tensor | list | tuple | dict | deque):
        return tree_map_only(Tensor, _without_graph, value)
    return value


def _without_graph(value: Tensor) -> Tensor:
    # an engine that shards parameters puts other values into the parameter itself
    return value if isinstance(value, nn.Parameter) else value.detach().requires_grad_(value.requires_grad)


def _versions(attributes: Attributes) -> dict[str, list[int]]:
    """Of all tensors that are no parameters."""
    leaves = {name: tree_leaves(value) for name, value in attributes.items()}
    return {
        name: [one._version for one in values if isinstance(one, Tensor) and not isinstance(one, nn.Parameter)]
        for name, values in leaves.items()
    }


def _number(value: Any) -> bool | int | float | None:
    return value if isinstance(value, bool | int | float) else None
