"""What autograd keeps of each block for the backward pass, from a run without data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["BlockBytes", "block_bytes"]


class BlockBytes(NamedTuple):
    """Of one block."""

    saved: int
    """Kept for its backward pass, beside parameters and what earlier blocks keep already."""
    output: int


def block_bytes(blocks: Sequence[tuple[str, nn.Module]], x: Tensor) -> list[BlockBytes]:
    """Of blocks on the meta device, run in order on `x`; every storage counts once, and `x` itself does not."""
    storages: dict[int, Any] = {}  # holds them, so that no address is used twice

    def is_new(tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        known = len(storages)
        storages[storage._cdata] = storage
        return len(storages) > known

    is_new(x)
    for _, block in blocks:
        for parameter in block.parameters():
            is_new(parameter)
    sizes = []
    for _, block in blocks:
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            if is_new(tensor):
                saved.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            x = block(x)
        sizes.append(BlockBytes(sum(saved), x.numel() * x.element_size()))
    return sizes
