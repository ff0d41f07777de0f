"""What each block of a model costs, found by running it forward and backward on tensors without numbers.

Fake tensors know device, precision and storage, so autocast acts on them, autograd keeps what it would keep, and every
operator of the real step is seen with its shapes; nothing is allocated and a whole MicroBooNE event takes two seconds.
Rejected: formulas a layer (they know nothing of a user's blocks, and forget the indices of a max pool, which are as
large as four bfloat16 maps), and timing on a device, which a login node does not have.

An operator's time is the longer of its arithmetic and its memory traffic (a roofline: Williams et al., CACM 52, 65,
2009). Convolutions are bound by the one, norms, activations and pools by the other.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lartpc_ds.errors import UserError
from lartpc_ds.planning.cuts import BlockCost

__all__ = ["BYTES_PER_SECOND", "FLOPS_PER_SECOND", "profile"]

FLOPS_PER_SECOND = 100e12
"""What convolutions reach on a data-centre GPU in bfloat16, about a third of its peak. Only the ratio to
BYTES_PER_SECOND decides where stages are cut; neither is measured here."""
BYTES_PER_SECOND = 2e12
"""Of memory traffic on such a GPU."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def profile(
    sequence: Sequence[tuple[str, nn.Module]], images: tuple[int, ...], precision: str, bytes_per_parameter: float
) -> list[BlockCost]:
    """The cost of each block for a micro-batch.

    Args:
        sequence: named blocks on the meta device; they are not changed.
        images: shape of a micro-batch, (events, planes, rows, columns).
        precision: `fp32`, `bf16` or `fp16`.
        bytes_per_parameter: of weight, gradient and optimizer state on one rank.

    Raises:
        UserError: a block cannot take what the one before it gives, or does not give one tensor.
    """
    dtype = _AUTOCAST.get(precision)
    # autocast of a CPU serves: what its rules choose beside convolutions is small
    autocast = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    copies = copy.deepcopy(nn.ModuleList(block for _, block in sequence)).train()
    costs = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        copies.to_empty(device="cpu")
        kept = _Kept({_storage(value) for value in (*copies.parameters(), *copies.buffers())})
        x = torch.empty(images)
        for (name, _), block in zip(sequence, copies, strict=True):
            cost, x = _profile_block(name, block, x, kept, autocast, bytes_per_parameter)
            costs.append(cost)
    return costs


def _profile_block(
    name: str,
    block: nn.Module,
    x: Tensor,
    kept: "_Kept",
    autocast: AbstractContextManager[Any],
    bytes_per_parameter: float,
) -> tuple[BlockCost, Tensor]:
    """The cost, and the block's output without its graph."""
    leaf = x.detach().requires_grad_(x.requires_grad)
    inside = leaf.clone()  # a block may work in place, which a leaf does not allow
    kept.begin(inside, x)
    try:
        with autocast, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value), _Meter() as forward:
            y = block(inside)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"block {name}: cannot take {tuple(x.shape)}, which the block before it gives: {error}"
        ) from None
    if not isinstance(y, Tensor):
        raise UserError(f"block {name}: gives a {type(y).__name__}; a block of a pipeline must give one tensor")
    trained = [value for value in block.parameters() if value.requires_grad]
    gradient = torch.empty_like(y)
    with _Meter() as backward:
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

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = 0.0
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read, written = (
            [value.nbytes for value in tree_leaves(tree) if isinstance(value, Tensor)]
            for tree in ((args, kwargs), result)
        )
        if not (read and written) or func.is_view:  # a question about a tensor, or a fresh one, or nothing at all
            return result
        moved = sum(read) + sum(written)
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        self.seconds += max(flops / FLOPS_PER_SECOND, moved / BYTES_PER_SECOND)
        self.largest_bytes = max(self.largest_bytes, moved)
        return result
