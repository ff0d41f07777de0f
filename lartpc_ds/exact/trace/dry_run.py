"""A network is built and run without data, for plans; whatever goes wrong is one sentence with layer and line.

Maps are on the meta device. Constants that a `forward` makes without naming a device are on the CPU, with their values,
so that a model may read them (`torch.linspace(0, 0.1, 8).tolist()`); where they meet a map they become meta as well.
Rejected: meta as the default device, which takes the values away; and fake tensors throughout, which are ten times
slower and take them away, too.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import tensors_of
from lartpc_ds.exact.trace.compiled import uncompiled
from lartpc_ds.exact.trace.frames import is_invariant, is_of_a_library, place_of
from lartpc_ds.exact.trace.meta_results import result_on_meta

__all__ = ["ReadableConstants", "built_without_memory", "dry_run", "locating_errors", "shadow_of"]


class _Unknown(Exception):
    """A call needs the numbers of a map."""


@contextmanager
def dry_run(model: nn.Module, *, followed: bool = False) -> Iterator[None]:
    """Inside, `model` may run on meta tensors.

    Args:
        model: the network, to name the layer where something goes wrong.
        followed: whether a torch function mode follows the calls, so that what no such mode sees is refused.

    Raises:
        UserError: whatever the model raises, with its layer and line.
    """
    with locating_errors(model), _Constants(followed):
        yield


@contextmanager
def locating_errors(model: nn.Module) -> Iterator[None]:
    """Inside, `model` runs without data; whatever it raises becomes a UserError with its layer and line."""
    try:
        with uncompiled():
            yield
    except Exception as error:  # a model may raise anything
        if isinstance(error, UserError) or is_invariant(error):
            raise
        raise UserError(f"{place_of(error, model)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what a model's exception says, in one line."""
    lines = str(error).splitlines() or [""]
    first_line = lines[0]
    if isinstance(error, _Unknown):
        return first_line
    if "TorchScript interpreter" in first_line:  # it loses what was raised, unless torch raised it
        return lines[-1].removeprefix("RuntimeError: ") or _COMPILED
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return _UNKNOWN.format(_python_name(error.func))
    if any(word in first_line for word in _WITHOUT_NUMBERS):
        return _UNKNOWN.format("the call")
    plain = isinstance(error, RuntimeError | ValueError | AssertionError) and first_line
    return first_line if plain else f"{type(error).__name__}: {first_line}"


_UNKNOWN = (
    "{} needs the numbers of a map, or gives a result whose size depends on them; a network is planned without data, "
    "so its forward must not read numbers (item, tolist, bool, int, float) nor choose pixels by their value (nonzero, "
    "masked_select, unique); compute with tensors of a fixed size instead, as torch.where(condition, x, y) does"
)


_COMPILED = (
    "calls compiled code (torch.jit.script, or an extension), which cannot be followed; call the Python function that "
    "it was made of"
)
_WITHOUT_NUMBERS = ("meta device", "Meta tensors", "meta tensor", "unallocated storage")
"""The words of torch's messages for a tensor without numbers, where no operator of its own is asked."""


def _python_name(func: Any) -> str:
    """Return the name by which an operator is called in Python."""
    name: str = func.overloadpacket.__name__.strip("_")
    return {"local_scalar_dense": "item", "unique2": "unique"}.get(name, name)


class _Constants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators on meta tensors and constants; those on constants alone keep their values."""

    def __init__(self, followed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._followed = followed
        self._written: dict[int, torch.UntypedStorage] = {}
        """Constants that a map was written into, so that their values are no longer known."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's guard against its compiler would import it, for more than a second of every start

    def _unknown(self, tensor: Tensor) -> bool:
        return tensor.is_meta or (bool(self._written) and tensor.untyped_storage()._cdata in self._written)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make one call."""
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        unknown = [tensor for tensor in tensors if self._unknown(tensor)]
        if not unknown:
            return func(*args, **kwargs)
        if self._followed and not is_of_a_library(sys._getframe(1)):
            raise _Unknown(_COMPILED)
        _refuse_unknown(func, args)
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}  # the place of a map does not matter
        if len(unknown) < len(tensors) or not all(tensor.is_meta for tensor in tensors):
            self._write(func, args)
            args, kwargs = tree_map_only(Tensor, _moved, (args, kwargs))
        return result_on_meta(func, args, kwargs)

    def _write(self, func: Any, args: Any) -> None:
        changed = [value for value, spec in zip(args, func._schema.arguments, strict=False) if spec.is_write]
        for tensor in tensors_of(changed, {}):
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                self._written[storage._cdata] = storage


def _refuse_unknown(func: Any, args: Any) -> None:
    dynamic = torch.Tag.dynamic_output_shape in func.tags
    if func is torch.ops.aten.index.Tensor:  # its size is known unless a mask chooses the pixels
        dynamic = any(
            index is not None and index.is_meta and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
    if dynamic or torch.Tag.data_dependent_output in func.tags:
        raise _Unknown(_UNKNOWN.format(_python_name(func)))


def _moved(tensor: Tensor) -> Tensor:
    # a mask of known values selects a known number of pixels
    return tensor if tensor.is_meta or tensor.dtype == torch.bool else tensor.to("meta")


class ReadableConstants(TorchFunctionMode):
    """Where weights have no memory, on the meta device or as fake tensors, constants have their values.

    A model may read them, such as the strengths of stochastic depth.
    """

    _MADE_BY = frozenset((torch.tensor, torch.arange, torch.linspace, torch.logspace))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make constants, and what is computed from them alone, with values."""
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        if func in self._MADE_BY and not tensors and kwargs.get("device") is None:
            with unset_fake_temporarily():
                return func(*args, **{**kwargs, "device": "cpu"})
        if tensors and not any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def built_without_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `make` makes, with its weights on the meta device."""
    with torch.device("meta"), ReadableConstants():
        return make()


def shadow_of(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device; buffers of a single number keep it.

    A batch norm may ask for its count of steps.

    Raises:
        UserError: a part of the model cannot be copied.
    """
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise UserError(
            f"{scripted[0] or 'the model'} is compiled by torch.jit; give the nn.Module that it was made of"
        )
    memo: dict[int, Any] = {}
    for value in (value for module in model.modules() for value in tree_leaves(vars(module))):
        if isinstance(value, torch.jit.ScriptFunction):
            memo[id(value)] = value
        elif isinstance(value, Tensor) and id(value) not in memo:
            # torch cannot copy a tensor that was computed, and an old weight_norm keeps one beside its parameters
            memo[id(value)] = _copied(value)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # an attribute may raise anything
        raise UserError(
            f"model {type(model).__name__} cannot be copied, as its plan needs: {_reason(error)}; keep what cannot "
            "be copied (locks, files, generators) outside of the network"
        ) from error


def _copied(value: Tensor) -> Tensor:
    if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise UserError(
            "the model has a lazy layer, whose weights have no size yet; run it once on an image, or give its layers "
            "their sizes"
        )
    if value.ndim == 0 and not value.is_meta and not isinstance(value, nn.Parameter):
        return value.detach().to("cpu", copy=True)
    moved = value.detach().to("meta")
    return nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved
