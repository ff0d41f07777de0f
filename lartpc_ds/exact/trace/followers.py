"""What may be made again instead of kept, found by running the model once on meta tensors and looking who reads what.

A norm whose result only a ReLU reads can apply the ReLU itself and keep one map instead of two. Where one layer alone
reads that, and answers with a gradient of its own making, the norm may write its own gradient over it. And where a
convolution makes a large map of a small one, for such a norm only, its result need not be kept either: a stem's image
is a tenth of its first map. Followed by tensor, not by a pattern of modules, so that it holds for any `forward`.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lartpc_ds.exact.grid.cuts import tensors_of
from lartpc_ds.exact.trace.dry_run import dry_run
from lartpc_ds.exact.trace.module_state import unchanged
from lartpc_ds.exact.trace.modules import announced
from lartpc_ds.exact.trace.trace import LOOKS, canonical

__all__ = ["Followers", "followers"]

Where = tuple[str, str]
"""(module, function)."""

_NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})
_SAME_MAP = frozenset("permute transpose movedim to float half bfloat16 type type_as contiguous detach".split())
_FRESH_GRADIENT = frozenset({"conv2d", "max_pool2d"})
_SMALL = 4
"""A convolution whose result has so many times its input's pixels and channels is made again."""


class Followers(NamedTuple):
    """Calls that may be made in another way, each time that they are made in a step."""

    norms: frozenset[Where] = frozenset()
    """Only a ReLU reads them."""
    owners: frozenset[Where] = frozenset()
    """Of those, the ones that may write over the gradient that reaches them."""
    convolutions: frozenset[Where] = frozenset()
    """Only such a norm reads them, and their input is small."""


@dataclass(eq=False)
class _Output:
    """Of one call of a norm or a convolution: which functions read it, and its ReLU."""

    small_input: bool = False
    readers: list[str] = field(default_factory=list)
    after_relu: list[str] = field(default_factory=list)

    @property
    def for_relu(self) -> bool:
        return self.readers == ["relu"]

    @property
    def owns_gradient(self) -> bool:
        return len(self.after_relu) == 1 and self.after_relu[0] in _FRESH_GRADIENT


class _Followers(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[Where, list[_Output]] = defaultdict(list)
        self._readers: dict[int, list[str]] = {}
        self._after: dict[int, list[str]] = {}
        self._kept: list[Any] = []  # so that no id is used twice
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
        if (name in _NORMS or name == "conv2d") and isinstance(result, Tensor):
            source = args[0] if args else kwargs["input"]
            output = _Output(small_input=_SMALL * source.numel() <= result.numel())
            self.outputs[self._stack[-1], name].append(output)
            self._follow(result, output.readers, output.after_relu)
        return result

    def _read(self, tensor: Tensor, name: str, result: Any) -> None:
        readers = self._readers.get(id(tensor))
        if readers is None:
            return
        after = self._after[id(tensor)]
        if name in _SAME_MAP and isinstance(result, Tensor):
            self._follow(result, readers, after)
            return
        readers.append(f"{name} of {self._stack[-1]}" if name in _NORMS else name)
        if name == "relu":  # who reads it from here on reads the ReLU, in place or not
            self._follow(result, after, after)

    def _follow(self, tensor: Tensor, readers: list[str], after: list[str]) -> None:
        self._readers[id(tensor)], self._after[id(tensor)] = readers, after
        self._kept.append(tensor)

    def leave(self, result: Any) -> None:
        """What the model returns is read by others."""
        for tensor in tensors_of(result, {}):
            self._read(tensor, "return", None)


def followers(model: nn.Module, images: Tensor) -> Followers:
    """Of a model in the mode that it will train in; all on meta tensors."""
    mode = _Followers()
    with torch.no_grad(), unchanged(model), dry_run(model, followed=True), mode, announced(model, mode.around):
        result = model(images)
        mode.leave(result)

    def all_of(kind: str, test: Callable[[_Output], bool]) -> frozenset[Where]:
        return frozenset(
            key
            for key, outputs in mode.outputs.items()
            if (key[1] in _NORMS) == (kind == "norm") and all(map(test, outputs))
        )

    norms = all_of("norm", lambda output: output.for_relu)
    names = {f"{name} of {owner}" for owner, name in norms}
    return Followers(
        norms,
        norms & all_of("norm", lambda output: output.owns_gradient),
        all_of("conv", lambda output: output.small_input and len(output.readers) == 1 and output.readers[0] in names),
    )
