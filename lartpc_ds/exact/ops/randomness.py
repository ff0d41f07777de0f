"""Random masks that do not depend on the layout.

A mask is a function of (seed, layer, step, micro-batch, sample, channel, global row, global column): each row of each
sample has a generator of its own, seeded by a hash of all that, and a tile keeps its columns of what the whole row
would draw. So the converted model on one rank drops the same pixels as on any grid, and a resumed or recomputed step
drops them again. Rejected: a counter-based hash in tensor arithmetic, eight bytes of scratch a pixel several times
over, where torch's own generators need none.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lartpc_ds.exact.grid.tiles import Clock, Tiles
from lartpc_ds.layout import Bounds

__all__ = ["Draw", "Dropout", "uniform"]


def uniform(clock: Clock, layer: str, like: Tensor, rows: tuple[int, int], cols: tuple[int, int], width: int) -> Tensor:
    """Uniform numbers in [0, 1), (N, C, rows, cols) float32: `rows` and `cols` of maps `width` columns wide."""
    numbers = torch.empty(len(like), like.shape[1], rows[1] - rows[0], cols[1] - cols[0], device=like.device)
    if numbers.is_meta:
        return numbers
    generator = torch.Generator(like.device)
    for sample in range(len(like)):
        for number, row in enumerate(range(*rows)):
            generator.manual_seed(_seed(clock, layer, sample, row))
            drawn = torch.rand(width, like.shape[1], generator=generator, device=like.device)
            numbers[sample, :, number] = drawn[cols[0] : cols[1]].T
    return numbers


def _seed(clock: Clock, layer: str, sample: int, row: int) -> int:
    key = f"{clock.seed}/{layer}/{clock.step}/{clock.micro_batch}/{sample}/{row}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest())


@dataclass(frozen=True, slots=True)
class Dropout:
    """F.dropout of a map that is cut at `bounds`, or of whole tensors (None), which all tiles must drop alike.

    `whole_channels` drops (sample, channel) pairs, as F.dropout2d.
    """

    layer: str
    bounds: tuple[Bounds, Bounds] | None
    whole_channels: bool = False

    def __call__(self, tiles: Tiles, function: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        """This rank's outputs."""
        return self._run(tiles, *args, **kwargs)

    def _run(self, tiles: Tiles, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        kept = (self._numbers(tiles, input) >= p).to(input.dtype)
        if p < 1:
            kept.div_(1 - p)
        return input.mul_(kept) if inplace else input * kept

    def _numbers(self, tiles: Tiles, x: Tensor) -> Tensor:
        if self.whole_channels:
            return uniform(tiles.clock, self.layer, x, (0, 1), (0, 1), 1).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        if self.bounds is None:
            flat = x.reshape(len(x), 1, 1, -1)
            return uniform(tiles.clock, self.layer, flat, (0, 1), (0, flat.shape[3]), flat.shape[3]).reshape(x.shape)
        (rows, cols), r, c = self.bounds, tiles.row, tiles.col
        return uniform(tiles.clock, self.layer, x, (rows[r], rows[r + 1]), (cols[c], cols[c + 1]), cols[-1])


@dataclass(frozen=True, slots=True)
class Draw:
    """Tensor.bernoulli_(p) of a whole tensor whose first dimension is the sample: stochastic depth."""

    layer: str

    def __call__(self, tiles: Tiles, function: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        """The same on all tiles."""
        return self._run(tiles, *args, **kwargs)

    def _run(self, tiles: Tiles, input: Tensor, p: float = 0.5) -> Tensor:
        flat = input.reshape(len(input), 1, 1, -1)
        numbers = uniform(tiles.clock, self.layer, flat, (0, 1), (0, flat.shape[3]), flat.shape[3])
        return input.copy_((numbers < p).reshape(input.shape))
