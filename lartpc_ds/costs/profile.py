"""What each block of a model costs, found by running it forward and backward on tensors without numbers.

Fake tensors know device, precision and storage, so autocast acts on them, autograd keeps what it would keep, and every
operator of the real step is seen with its shapes; nothing is allocated and a whole MicroBooNE event takes two seconds.
Rejected: formulas a layer (they know nothing of a user's blocks, and forget the indices of a max pool, which are as
large as four bfloat16 maps), and timing on a device, which a login node does not have.

An operator's time is `roofline.operator_work`'s, by a machine's rates: convolutions are bound by arithmetic, norms,
activations and pools by memory traffic. Rejected: rates that are written here, because their ratio decides where
stages are cut, and it differs by machine.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lartpc_ds.costs.cuts import BlockCost
from lartpc_ds.costs.hardware import Rates
from lartpc_ds.costs.roofline import operator_work
from lartpc_ds.errors import UserError
from lartpc_ds.exact.trace.dry_run import ReadableConstants, shadow_of, told

__all__ = ["profile"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def profile(
    sequence: Sequence[tuple[str, nn.Module]],
    images: tuple[int, ...],
    precision: str,
    bytes_per_parameter: float,
    rates: Rates,
) -> list[BlockCost]:
    """The cost of each block for a micro-batch.

    Args:
        sequence: named blocks on the meta device; they are not changed.
        images: shape of a micro-batch, (events, planes, rows, columns).
        precision: `fp32`, `bf16` or `fp16`.
        bytes_per_parameter: of weight, gradient and optimizer state on one rank.
        rates: of the device.

    Raises:
        UserError: a block cannot take what the one before it gives, or does not give one tensor.
    """
    dtype = _AUTOCAST.get(precision)
    # autocast of a CPU serves: what its rules choose beside convolutions is small
    autocast = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    copies = shadow_of(nn.ModuleList(block for _, block in sequence)).train()
    assert isinstance(copies, nn.ModuleList)
    costs = []
    with FakeTensorMode(allow_non_fake_inputs=True), ReadableConstants():
        copies.to_empty(device="cpu")
        kept = _Kept({_storage(value) for value in (*copies.parameters(), *copies.buffers())})
        x = torch.empty(images)
        for (name, _), block in zip(sequence, copies, strict=True):
            meters = _Meter(rates), _Meter(rates)
            cost, x = _profile_block(name, block, x, kept, autocast, bytes_per_parameter, meters)
            costs.append(cost)
    return costs


def _profile_block(
    name: str,
    block: nn.Module,
    x: Tensor,
    kept: "_Kept",
    autocast: AbstractContextManager[Any],
    bytes_per_parameter: float,
    meters: tuple["_Meter", "_Meter"],
) -> tuple[BlockCost, Tensor]:
    """The cost, and the block's output without its graph; `meters` are of the forward and the backward pass."""
    forward, backward = meters
    leaf = x.detach().requires_grad_(x.requires_grad)
    inside = leaf.clone()  # a block may work in place, which a leaf does not allow
    kept.begin(inside, x)
    try:
        with told(block), autocast, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value), forward:
            y = block(inside)
    except UserError as error:
        raise UserError(
            f"block {name}: cannot take {tuple(x.shape)}, which the block before it gives: {error}"
        ) from None
    if not isinstance(y, Tensor):
        raise UserError(f"block {name}: gives a {type(y).__name__}; a block of a pipeline must give one tensor")
    trained = [value for value in block.parameters() if value.requires_grad]
    gradient = torch.empty_like(y)
    with backward:
        if y.requires_grad:
            wanted = [leaf, *trained] if leaf.requires_grad else trained
            torch.autograd.grad(y, wanted, gradient, allow_unused=True)
    parameters = sum(value.numel() for value in trained)
    return BlockCost(
        name=name,
        parameters=parameters,
        state_bytes=int(parameters * bytes_per_parameter),
        saved_bytes=kept.fresh_bytes,
        input_bytes=x.nbytes,
        output_bytes=y.nbytes,
        saves_input=kept.holds(x),
        output_saved=kept.holds(y),
        transient_bytes=max(forward.largest_bytes, backward.largest_bytes),
        forward_ns=round(forward.seconds * 1e9),
        backward_ns=round(backward.seconds * 1e9),
    ), y.detach().requires_grad_(y.requires_grad)


def _storage(value: Tensor) -> int:
    return cast(int, value.untyped_storage()._cdata)


@dataclass
class _Kept:
    """The storages that autograd keeps of a whole model, each counted with the first block that has it kept."""

    of_model: set[int]
    by_this: set[int] = field(default_factory=set)
    fresh_bytes: int = 0
    _seen: set[int] = field(default_factory=set)
    _same: dict[int, int] = field(default_factory=dict)
    _alive: list[torch.UntypedStorage] = field(default_factory=list)
    """All that were seen, so that no other storage gets the number of one."""

    def begin(self, inside: Tensor, x: Tensor) -> None:
        """A block begins, whose input `x` it sees as `inside`: the same map, once."""
        self.by_this, self.fresh_bytes = set(), 0
        self._alive += [inside.untyped_storage(), x.untyped_storage()]
        self._same[_storage(inside)] = self._number(x)

    def _number(self, value: Tensor) -> int:
        number = _storage(value)
        return self._same.get(number, number)

    def pack(self, value: Tensor) -> Tensor:
        """Autograd's hook."""
        number = self._number(value)
        if number not in self.of_model:
            if number not in self._seen:
                self._seen.add(number)
                self._alive.append(value.untyped_storage())
                self.fresh_bytes += value.untyped_storage().nbytes()
            self.by_this.add(number)
        return value

    def holds(self, value: Tensor) -> bool:
        """Has the block at hand had this map kept?"""
        return self._number(value) in self.by_this


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operators; views cost nothing."""

    def __init__(self, rates: Rates) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rates = rates
        self.seconds = 0.0
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        work = operator_work(func, args, kwargs, result, self._rates)
        if work.seconds > 0:
            moved = sum(value.nbytes for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor))
            self.seconds += work.seconds
            self.largest_bytes = max(self.largest_bytes, moved)
        return result
