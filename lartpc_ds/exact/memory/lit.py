"""While blocks run on the distinct patches of a map, a mode knows which patches each tensor holds.

`exact.memory.front` says how such a mode works. A map is then a tensor (patches, C, rows, columns of a patch).
Functions of every pixel run as they are, windows read each patch with its surroundings, and norms and pools count every
pixel as often as it occurs.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.cuts import Run
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.readings import PatchReading, PixelReading
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.kernels.patches import moved
from lartpc_ds.exact.memory.front import Front
from lartpc_ds.exact.ops.operator import PATCHES, Operator, Rule

__all__ = ["Lit", "Placed", "spread"]

_MAP = (0, 2, 3)

Where = tuple[str, str]
"""The (module, function) of a call."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor holds these patches; they, their rows and their columns are its dimensions `dims`."""

    patches: Patches
    dims: tuple[int, ...] = _MAP


class Lit(Front[Placed]):
    """Follows the distinct patches of some events through blocks."""

    words = PATCHES

    def __init__(self, tiles: Tiles, lean: Mapping[Where, Run] | None = None) -> None:
        """Take the groups of batch statistics, and what runs in place of the norms that take the ReLU after them."""
        super().__init__()
        self.tiles = tiles
        self._lean = lean or {}
        self.known_readings: dict[Hashable, tuple[Patches, Patches, PixelReading]] = {}

    def run(
        self, sequence: Sequence[tuple[str, nn.Module]], x: Tensor, patches: Patches | None, until: str | None
    ) -> Tensor:
        """Run all blocks, up to `until` on patches `x` of the images, and from there on on whole maps."""
        placed = None if patches is None else Placed(patches)
        self.begin()
        for name, block in sequence:
            if placed is not None and name == until:
                x, placed = spread(x, placed.patches), None
            if placed is None:
                x = block(x)
            else:
                x, placed = self.run_block(block, x, placed)
        self.begin()  # what is known of the event would stay in memory until the next one
        return x if placed is None else spread(x, placed.patches)

    def begin(self) -> None:
        """Forget all tensors and readings."""
        super().begin()
        self.known_readings = {}

    def _leave(self, result: Any) -> Placed | None:
        placed = self.part_of(result)
        if placed is not None and placed.dims != _MAP:
            raise self.refuse("gives a map with its dimensions in another order than (events, channels, rows, columns)")
        if self.notes is not None and isinstance(result, Tensor):
            self.note((), {}, [result])
        return placed

    # The following methods answer a rule (PatchCallSite).

    def lean_run(self, name: str) -> Run | None:
        """Return what runs in place of the norm at hand together with the ReLU after it, or None."""
        return self._lean.get((self.owner, name))

    def patches_of(self, tensor: Any) -> Patches | None:
        """Return the patches of a tensor, or None for whole tensors and other values."""
        placed = self.part_of(tensor)
        return None if placed is None else placed.patches

    def mark_patches(self, tensor: Tensor, patches: Patches, dims: tuple[int, ...] = _MAP) -> Tensor:
        """Note whose patches a result has, and in which dimensions, and return it."""
        sizes = (len(patches), *patches.shape)
        assert tuple(tensor.shape[dim] for dim in dims) == sizes, (self._name, tuple(tensor.shape), dims, sizes)
        return self.mark_part(tensor, Placed(patches, dims))

    def dims_of(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the dimensions of the patches, their rows and their columns."""
        placed = self.part_of(tensor)
        return None if placed is None else placed.dims

    def size_of(self, tensor: Any) -> tuple[int, ...]:
        """Return the sizes of these dimensions."""
        placed = self.part_of(tensor)
        assert placed is not None
        return (len(placed.patches), *placed.patches.shape)

    def cut_like(self, result: Tensor, source: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Note that a result has the patches of `source`, in its own dimensions `dims`."""
        patches = self.patches_of(source)
        assert patches is not None
        return self.mark_patches(result, patches, dims)

    # The following methods make the calls.

    def _rule(self, operator: Operator) -> Rule | None:
        return operator.on_patches

    def _unknown(self, x: Tensor) -> bool:
        return max(x.shape[2:]) > 1  # the mean of each map is a whole tensor, which may be convolved

    def _size(self, tensor: Tensor) -> tuple[Any, ...]:
        placed = self.part_of(tensor)
        if placed is None:
            return (None, *tensor.shape)
        others = (size for dim, size in enumerate(tensor.shape) if dim not in placed.dims)
        return (placed.dims, placed.patches.size, *others)


def spread(x: Tensor, patches: Patches) -> Tensor:
    """Return the whole map (events, C, rows, columns) of its patches (patches, C, rows, columns)."""
    (height, width), (_, down, across) = patches.shape, patches.grid
    y = moved(x, PatchReading.spread(patches)).permute(0, 2, 3, 1)
    y = y.reshape(patches.events, down, across, height, width, x.shape[1]).transpose(2, 3)
    y = y.reshape(patches.events, down * height, across * width, x.shape[1]).permute(0, 3, 1, 2)
    rows, cols = patches.size
    return y[:, :, :rows, :cols].contiguous(memory_format=torch.channels_last)
