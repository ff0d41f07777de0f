"""Which norms of a model feed a ReLU and nothing else, found by running it once on meta tensors.

Such a norm can apply the ReLU itself and keep one map instead of two; a norm whose output goes elsewhere too cannot.
Followed by tensor, not by a pattern of modules, so that it holds for any `forward`.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lartpc_ds.parallel.cuts import tensors_of
from lartpc_ds.parallel.modules import announced
from lartpc_ds.parallel.trace import LOOKS, canonical

__all__ = ["norms_before_relu"]

_NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})
_SAME_MAP = frozenset("permute transpose movedim to float half bfloat16 type type_as contiguous detach".split())


@dataclass(eq=False)
class _Output:
    """Of one call of a norm: who read it."""

    relus: int = 0
    others: int = 0


class _Followers(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[tuple[str, str], list[_Output]] = defaultdict(list)
        self._of: dict[int, _Output] = {}
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._stack: list[str] = []

    def around(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._stack.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, canonical(func)
        result = func(*args, **kwargs)
        if name == "get" or name in LOOKS:
            return result
        for tensor in tensors_of(args, kwargs):
            self._read(tensor, name, result)
        if name in _NORMS and isinstance(result, Tensor):
            output = _Output()
            self.outputs[self._stack[-1], name].append(output)
            self._follow(result, output)
        return result

    def _read(self, tensor: Tensor, name: str, result: Any) -> None:
        output = self._of.get(id(tensor))
        if output is None:
            return
        if name in _SAME_MAP:
            self._follow(result, output)
        elif name == "relu":
            output.relus += 1
            if result is tensor:  # in place: who reads it from here on reads the ReLU
                del self._of[id(tensor)]
        else:
            output.others += 1

    def _follow(self, tensor: Tensor, output: _Output) -> None:
        self._of[id(tensor)] = output
        self._kept.append(tensor)

    def leave(self, result: Any) -> None:
        """What the model returns is read by others."""
        for tensor in tensors_of(result, {}):
            self._read(tensor, "return", None)


def norms_before_relu(model: nn.Module, images: Tensor) -> frozenset[tuple[str, str]]:
    """(module, function) of every norm that is followed by a ReLU only, each time that it runs; all on meta tensors."""
    mode = _Followers()
    with torch.no_grad(), mode, announced(model, mode.around):
        result = model(images)
    mode.leave(result)
    return frozenset(
        key
        for key, outputs in mode.outputs.items()
        if all((output.relus, output.others) == (1, 0) for output in outputs)
    )
