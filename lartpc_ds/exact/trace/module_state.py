"""`ModuleState` is what modules hold beside their parameters, so that another run can start where one started.

A batch norm moves its running statistics in its forward pass, a spectral norm the vectors of its power iteration, and a
layer of somebody's own may count its calls. For a run that must repeat another, buffers and attributes get the values
from before the first one in place of today's. They are exchanged, never written to: what autograd has saved of a buffer
stays as it is. A large buffer that a run did not change is not copied for longer than the run. Rejected: restoring
buffers by writing to them, which misses attributes and replaced buffers and spoils what frozen norms have saved.

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

__all__ = ["ModuleState", "both_modes", "unchanged"]

_TORCHS = frozenset(vars(nn.Module())) - {"training"}
_ENGINES = ("ds_", "_external_params", "applied_pre_backward_ref_cnt", "pre_bwd_fn", "post_bwd_fn")
"""Attributes in which DeepSpeed counts the calls of its hooks, of which a second run is one more."""
_SMALL_BYTES = 1 << 16
"""The copy of a buffer of at most this size is kept whether the buffer changes or not."""

Attributes = dict[str, Any]


@dataclass(slots=True)
class _Kept:
    """A buffer before a run: itself, its version, and a copy if it is small or the run changed it."""

    buffer: Tensor
    version: int
    values: Tensor | None

    def changed(self) -> bool:
        """Return whether the buffer was changed, by its version and by its values.

        Writing to `buffer.data` does not change the version, and in a trace there are no values.
        """
        if self.buffer._version != self.version or self.values is None or has_no_data(self.buffer):
            return self.buffer._version != self.version
        return not torch.equal(self.buffer, self.values)


class ModuleState:
    """The state of a module and all modules within it, when this is made.

    `put_back` and `leave` surround a run that starts from it.
    """

    def __init__(self, module: nn.Module) -> None:
        names, self._modules = zip(*module.named_modules(), strict=True)
        self._names = [f"{name}." if name else "" for name in names]
        self._attributes = [_frozen(_attributes(part)) for part in self._modules]
        self._versions = [_versions(attributes) for attributes in self._attributes]
        self._places = [dict(part._buffers) for part in self._modules]
        buffers = {id(buffer): buffer for place in self._places for buffer in place.values() if buffer is not None}
        self._kept = {key: _Kept(buffer, buffer._version, buffer.detach().clone()) for key, buffer in buffers.items()}
        self._now: list[tuple[Attributes, dict[str, Tensor | None]]] = []

    def settle(self) -> list[str]:
        """Note that a run has ended, and keep no copy that is not needed.

        Return the attributes with tensors that the run changed in place; their values are lost because they are no
        buffers.
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
        """Return the buffers that the run left as they were and that somebody has changed since."""
        gone = {key for key, kept in self._kept.items() if kept.values is None and kept.changed()}
        places = zip(self._names, self._places, strict=True)
        return [prefix + name for prefix, place in places for name, buffer in place.items() if id(buffer) in gone]

    def changes(self) -> list[str]:
        """Return the buffers, and the attributes that are numbers, that differ from before.

        Call it before `settle`.
        """
        changed = []
        for prefix, module, attributes, place in zip(
            self._names, self._modules, self._attributes, self._places, strict=True
        ):
            now = _attributes(module)
            changed += [prefix + name for name in now if _number(now[name]) != _number(attributes.get(name))]
            for name, buffer in module._buffers.items():
                if place.get(name) is not buffer or (buffer is not None and self._kept[id(buffer)].changed()):
                    changed.append(prefix + name)
        return changed

    def put_back(self) -> None:
        """Give the modules what they held when this was made."""
        self._now = [(_attributes(module), dict(module._buffers)) for module in self._modules]
        values = {key: kept.buffer if kept.values is None else kept.values.clone() for key, kept in self._kept.items()}
        for module, attributes, place in zip(self._modules, self._attributes, self._places, strict=True):
            _set(module, _frozen(attributes), {name: values.get(id(buffer), buffer) for name, buffer in place.items()})

    def leave(self) -> None:
        """Give the modules again what they held before `put_back`."""
        for module, (attributes, buffers) in zip(self._modules, self._now, strict=True):
            _set(module, attributes, buffers)
        self._now = []


@contextmanager
def unchanged(module: nn.Module) -> Iterator[ModuleState]:
    """Run something that is only looked at: afterwards the module holds what it held before."""
    state = ModuleState(module)
    try:
        yield state
    finally:
        state.put_back()


@contextmanager
def both_modes(model: nn.Module) -> Iterator[Iterator[None]]:
    """Give first the modes that the modules are in, then evaluation; afterwards the modules are as before."""
    before = [module.training for module in model.modules()]

    def modes() -> Iterator[None]:
        yield
        model.eval()
        yield

    yield modes()
    for module, mode in zip(model.modules(), before, strict=True):
        module.training = mode


def _attributes(module: nn.Module) -> Attributes:
    """Return what is no parameter, buffer, submodule or hook."""
    return {
        name: value for name, value in vars(module).items() if name not in _TORCHS and not name.startswith(_ENGINES)
    }


def _set(module: nn.Module, attributes: Attributes, buffers: dict[str, Tensor | None]) -> None:
    for name in _attributes(module).keys() - attributes.keys():
        del vars(module)[name]
    vars(module).update(attributes)
    module._buffers.clear()
    module._buffers.update(buffers)


def _frozen(attributes: Attributes) -> Attributes:
    """Copy containers, and take tensors without the graph behind them, which would keep the step before alive."""
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
    """Return the versions of all tensors that are no parameters."""
    leaves = {name: tree_leaves(value) for name, value in attributes.items()}
    return {
        name: [leaf._version for leaf in values if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)]
        for name, values in leaves.items()
    }


def _number(value: Any) -> bool | int | float | None:
    return value if isinstance(value, bool | int | float) else None
