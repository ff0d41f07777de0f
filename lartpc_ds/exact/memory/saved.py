"""`SavedMaps` measures what autograd keeps of a model's blocks for the backward pass, in a run without data.

A map that several layers keep counts once, with the first block that needs it. Rejected: adding up the layers' outputs,
which counts maps that nobody keeps.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["BlockBytes", "SavedMaps", "block_bytes"]


class SavedMaps:
    """The maps that autograd keeps of blocks that run in order; each map counts with the first block that needs it."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Start with tensors that are there anyway, such as weights, and therefore count with no block."""
        # a storage that is alive keeps its number, so that no other storage gets it
        self._alive = [value.untyped_storage() for value in known]
        self._known = {storage._cdata for storage in self._alive}
        self._seen: set[int] = set()
        self._of_block: set[int] = set()
        self._same: dict[int, int] = {}
        self.fresh_bytes = 0
        """The bytes that autograd keeps for the current block alone, beside what is known and what earlier blocks keep.
        """

    @contextmanager
    def of_block(self, x: Tensor, inside: Tensor) -> Iterator[None]:
        """Count the block that runs in this context, which sees its input `x` as `inside`: the same map, once."""
        self._of_block, self.fresh_bytes = set(), 0
        self._alive += [inside.untyped_storage(), x.untyped_storage()]
        if inside is not x:
            self._same[inside.untyped_storage()._cdata] = self._number(x)
        with saved_tensors_hooks(self._pack, lambda value: value):
            yield

    def holds(self, value: Tensor) -> bool:
        """Return whether autograd keeps this map for the current block."""
        return self._number(value) in self._of_block

    def _number(self, value: Tensor) -> int:
        number: int = value.untyped_storage()._cdata
        return self._same.get(number, number)

    def _pack(self, value: Tensor) -> Tensor:
        number = self._number(value)
        if number not in self._known:
            if number not in self._seen:
                self._seen.add(number)
                self._alive.append(value.untyped_storage())
                self.fresh_bytes += value.untyped_storage().nbytes()
            self._of_block.add(number)
        return value


class BlockBytes(NamedTuple):
    """The bytes that one block takes."""

    saved: int
    """The bytes kept for its backward pass, beside parameters and what earlier blocks keep already."""
    output: int


def block_bytes(blocks: Sequence[tuple[str, nn.Module]], x: Tensor) -> list[BlockBytes]:
    """Run blocks on the meta device, in order, on `x`, which does not count itself."""
    saved = SavedMaps([x, *(weight for _, block in blocks for weight in block.parameters())])
    sizes = []
    for _, block in blocks:
        with torch.enable_grad(), saved.of_block(x, x):
            x = block(x)
        sizes.append(BlockBytes(saved.fresh_bytes, x.numel() * x.element_size()))
    return sizes
