"""A profile finds what each block of a model costs, by running it forward and backward on tensors without numbers.

Fake tensors know device, precision and storage, so autocast acts on them, autograd keeps what it would keep, and every
operator of the real step is seen with its shapes; nothing is allocated and a whole MicroBooNE event takes two seconds.
Rejected: formulas a layer (they know nothing of a user's blocks, and forget the indices of a max pool, which are as
large as four bfloat16 maps), and timing on a device, which a login node does not have.

An operator's time is `roofline.OperatorCall.work`'s, by a machine's rates: convolutions are bound by arithmetic, norms,
activations and pools by memory traffic. Rejected: rates that are written here, because their ratio decides where
stages are cut, and it differs by machine.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lartpc_ds.costs.cuts import BlockCost
from lartpc_ds.costs.hardware import Rates
from lartpc_ds.costs.meter import Meter, traced_autocast
from lartpc_ds.errors import UserError
from lartpc_ds.exact.memory.saved import SavedMaps
from lartpc_ds.exact.trace.dry_run import ReadableConstants, locating_errors, shadow_of

__all__ = ["profile"]


def profile(
    sequence: Sequence[tuple[str, nn.Module]],
    images: tuple[int, ...],
    precision: str,
    bytes_per_parameter: float,
    rates: Rates,
) -> list[BlockCost]:
    """Find the cost of each block for a micro-batch.

    Args:
        sequence: named blocks on the meta device; they are not changed.
        images: shape of a micro-batch, (events, planes, rows, columns).
        precision: `fp32`, `bf16` or `fp16`.
        bytes_per_parameter: of weight, gradient and optimizer state on one rank.
        rates: of the device.

    Raises:
        UserError: a block cannot take what the one before it gives, or does not give one tensor.
    """
    copies = shadow_of(nn.ModuleList(block for _, block in sequence)).train()
    assert isinstance(copies, nn.ModuleList)
    costs = []
    with FakeTensorMode(allow_non_fake_inputs=True), ReadableConstants():
        copies.to_empty(device="cpu")
        saved = SavedMaps((*copies.parameters(), *copies.buffers()))
        x = torch.empty(images)
        for (name, _), block in zip(sequence, copies, strict=True):
            cost, x = _profile_block(name, block, x, saved, precision, bytes_per_parameter, rates)
            costs.append(cost)
    return costs


def _profile_block(
    name: str,
    block: nn.Module,
    x: Tensor,
    saved: SavedMaps,
    precision: str,
    bytes_per_parameter: float,
    rates: Rates,
) -> tuple[BlockCost, Tensor]:
    """Run one block forward and backward; its cost, and its output without a graph."""
    forward, backward = Meter(rates), Meter(rates)
    leaf = x.detach().requires_grad_(x.requires_grad)
    inside = leaf.clone()  # a block may work in place, which a leaf does not allow
    try:
        with locating_errors(block), traced_autocast(precision), saved.of_block(x, inside), forward:
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
        saved_bytes=saved.fresh_bytes,
        input_bytes=x.nbytes,
        output_bytes=y.nbytes,
        saves_input=saved.holds(x),
        output_saved=saved.holds(y),
        transient_bytes=max(forward.largest, backward.largest).moved_bytes,
        forward_ns=round(forward.seconds * 1e9),
        backward_ns=round(backward.seconds * 1e9),
    ), y.detach().requires_grad_(y.requires_grad)
