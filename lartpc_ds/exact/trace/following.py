"""`Following` is what all modes share that follow a model's calls of torch functions, module by module.

A torch function mode sees every function that the model calls, in modules and in `forward` alike, so a convolution is
met where it happens, whatever module or subclass calls it. Four modes follow: `Tracer` plans the calls of the whole
image, `Replay` makes them on a tile, `Strips` on a strip and `Lit` on patches. Rejected: a table of module types
(misses functions, and runs unknown subclasses on a tile) and tensor subclasses at run time (DeepSpeed's hooks and
autograd functions lose them).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import EmptyTile, Run, tensors_of
from lartpc_ds.exact.ops.operator import TILES, Numbers, Operator, Result, Rule, Words, canonical
from lartpc_ds.exact.ops.table import OPERATORS
from lartpc_ds.exact.trace.frames import where

__all__ = ["LOOKS", "Following", "shared_numbers"]

LOOKS = frozenset(
    """dim size numel stride is_contiguous is_floating_point is_complex element_size get_device nelement ndimension
    storage_offset untyped_storage len hash format repr set_grad_enabled""".split()
)
"""Functions that look at a tensor and make none."""


def shared_numbers(name: str, run: Run | None, numbers: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the numbers of a call that must be the same on every tile or strip."""
    operator = OPERATORS.get(name)
    kind = Numbers.SHARED if operator is None else operator.numbers
    own = kind is Numbers.OWN or (kind is Numbers.PLANNED and run is not None)
    return () if own else numbers


class Following(TorchFunctionMode):
    """Knows the module that runs and the function that it calls; subclasses say what becomes of a call."""

    words: Words = TILES

    def __init__(self) -> None:
        super().__init__()
        self._stack: list[str] = []
        self._name = ""

    @property
    def owner(self) -> str:
        """The name of the innermost module that is running; "" is the model itself."""
        return self._stack[-1] if self._stack else ""

    def around(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module, as `modules.announce` asks."""
        self._stack.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            self._stack.pop()

    def refuse(self, reason: str, kind: type[Exception] | None = None) -> Exception:
        """Return the error for the call at hand, with layer and line."""
        layer = self.owner or "the model's own forward"
        error = (kind or UserError)(f"{layer} ({where()}): {self._name} {reason}")
        if isinstance(error, EmptyTile):
            error.layer = self.owner
        return error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand a call that computes something on to `_call`."""
        kwargs, self._name = kwargs or {}, canonical(func)
        if self._name in LOOKS:
            return func(*args, **kwargs)
        if self._name == "get":
            return self._attribute(func, args)
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError

    def dims_of(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the dimensions of a tensor that are cut, or None for whole tensors and other values."""
        return None

    def cut_like(self, result: Tensor, source: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Note that a result is cut as `source` is, in its own dimensions `dims`."""
        raise NotImplementedError

    def _attribute(self, func: Any, args: Any) -> Any:
        """Read an attribute of a tensor; of a map that is cut, `data` is the only covered one that is a tensor."""
        result, dims = func(*args), self.dims_of(args[0])
        if dims is not None and isinstance(result, Tensor):
            if func.__self__.__name__ != "data":
                raise self.refuse(f"of the attribute {func.__self__.__name__} has no proven form on {self.words.parts}")
            self.cut_like(result, args[0], dims)
        return result

    def _by_rule(self, operator: Operator | None, rule: Rule | None, func: Any, args: Any, kwargs: Any) -> Result:
        """Make a call on a map that is cut by its rule, or refuse it."""
        if operator is None or rule is None:
            raise self.refuse(
                f"has no proven form on {self.words.parts}; {self.words.way_out}, or write the layer with "
                "convolutions, pools and pointwise functions"
            )
        first = args[0] if args else kwargs.get("input")
        others = [tensor for tensor in tensors_of(args, kwargs) if tensor is not first]
        if not operator.joins and any(self.dims_of(tensor) is not None for tensor in others):
            raise self.refuse(f"takes a map that is cut into {self.words.parts} for its weights, which must be whole")
        try:
            return rule(self, func, *args, **kwargs)
        except (TypeError, IndexError) as error:
            raise self.refuse(f"is called in a way that is not covered on {self.words.parts}: {error}") from error
