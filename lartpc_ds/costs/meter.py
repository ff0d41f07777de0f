"""A meter watches every operator that runs, and adds up the bytes that are alive and the seconds by a machine's rates.

Every cost is read from this one meter: the profile of blocks, the trace of a rank, the traced peak of `bench memory`,
and the operators that a calibration times. It is a dispatch mode, so it sees what the real step runs (autocast, the
backward pass and the optimizer included) and knows no layer. It counts the bytes of fake tensors only, because those
of real ones can be measured. Rejected: torch's MemTracker, which counts the same bytes, but keeps statistics of every
module, refuses a second micro-batch, and would have to be changed in its private methods.
"""

import weakref
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lartpc_ds.costs.hardware import Precision, Rates
from lartpc_ds.costs.roofline import DTYPES, NO_WORK, OperatorCall
from lartpc_ds.exact.grid.pieces import IN_PIECES

__all__ = ["Meter", "Operator", "Peak", "traced_autocast"]

Kind = Literal["weights", "gradients", "buffers", "activations", "halos"]

_ENTER = torch.ops.profiler._record_function_enter_new.default
_EXIT = torch.ops.profiler._record_function_exit._RecordFunction


class Operator(NamedTuple):
    """An operator that ran, in the words by which its rate is found."""

    moved_bytes: int
    precision: Precision
    name: str


@dataclass(frozen=True)
class Peak:
    """The bytes of a rank at the moment at which it has most of them."""

    weights: int = 0
    gradients: int = 0
    """The gradients of weights; the gradients of maps are activations."""
    buffers: int = 0
    activations: int = 0
    """All other tensors: maps that are kept, maps at hand and their gradients."""
    halos: int = 0
    """Buffers of messages to other tiles."""
    scratch: int = 0
    """What the running kernel takes for itself."""

    @property
    def total(self) -> int:
        """All of these together."""
        return self.weights + self.gradients + self.buffers + self.activations + self.halos + self.scratch


@dataclass(slots=True)
class _Held:
    """A storage that is alive."""

    size: int
    kind: Kind
    storage: "weakref.ref[torch.UntypedStorage]"


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own has no types
    """Enter it to measure what runs inside; without rates everything takes no time."""

    def __init__(self, rates: Rates | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rates = rates
        self.seconds = 0.0
        self.peak = Peak()
        self.operators = 0
        """How many ran, views apart."""
        self.largest = Operator(0, "fp32", "")
        """The one that moved most bytes."""
        self._bytes: dict[Kind, int] = dict.fromkeys(("weights", "gradients", "buffers", "activations", "halos"), 0)
        self._held: dict[int, _Held] = {}
        self._regions: list[str] = []

    def hold(self, *values: nn.Module | Tensor) -> None:
        """Count what was there before: tensors, and modules with their weights, buffers and gradients."""
        for value in values:
            if isinstance(value, Tensor):
                self._hold(value)
                continue
            for buffer in value.buffers():
                self._hold(buffer, "buffers")
            for weight in value.parameters():
                self._hold(weight, "weights")
                self._hold_gradient_of(weight)
                if weight.requires_grad:
                    weight.register_hook(lambda gradient: self._hold(gradient, "gradients"))  # type: ignore[no-untyped-call]
                    weight.register_post_accumulate_grad_hook(self._hold_gradient_of)  # type: ignore[no-untyped-call]

    def hold_halo(self, tensor: Tensor) -> None:
        """Count a tensor as the buffer of a message as long as it is alive, unless it is a part of a map."""
        if tensor.untyped_storage().nbytes() == tensor.nbytes:
            self._hold(tensor, "halos")

    def _hold_gradient_of(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self._hold(weight.grad, "gradients")

    def _hold(self, tensor: Tensor, kind: Kind | None = None) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        held = self._held.get(number)
        if held is None:
            alive = weakref.ref(storage, lambda _: self._release(number))
            held = self._held[number] = _Held(storage.nbytes(), kind or "activations", alive)
            self._bytes[held.kind] += held.size
        elif kind is not None:
            self._bytes[held.kind] -= held.size
            self._bytes[kind] += held.size
            held.kind = kind

    def _release(self, number: int) -> None:
        held = self._held.pop(number)
        self._bytes[held.kind] -= held.size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, then look what is alive while its kernel runs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.prim.device.default:
            return result  # half of all calls, and none of them works
        if func is _ENTER:
            self._regions.append(args[0])
        elif func is _EXIT:
            self._regions.pop()
        else:
            self._count(OperatorCall(func, args, kwargs, result))
        return result

    def _count(self, call: OperatorCall) -> None:
        for tensor in call.results:
            if isinstance(tensor, FakeTensor):
                self._hold(tensor)
        self.operators += bool(call.results) and not call.is_view
        work = NO_WORK
        if call.works:
            self.largest = max(self.largest, Operator(call.moved_bytes, call.precision, call.name))
            if self.rates is not None:
                work = call.work(self.rates, in_pieces=IN_PIECES in self._regions)
        self.seconds += work.seconds
        if sum(self._bytes.values()) + work.scratch_bytes > self.peak.total:
            self.peak = Peak(**self._bytes, scratch=work.scratch_bytes)


def traced_autocast(precision: str) -> torch.autocast:
    """The autocast of a run in `precision`, for a trace.

    It is a CPU's for every device, because what its rules choose beside convolutions is small.
    """
    return torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")
