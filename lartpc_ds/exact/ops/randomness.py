"""Random masks do not depend on the layout, because each row of each sample has a generator of its own.

A mask is a function of (seed, layer, step, micro-batch, sample, channel, global row, global column): each row of each
sample has a generator of its own, seeded by a hash of all that, and a tile keeps its columns of what the whole row
would draw. So the converted model on one rank drops the same pixels as on any grid, and a resumed or recomputed step
drops them again. Rejected: a counter-based hash in tensor arithmetic, which takes eight bytes of scratch per pixel
several times over, where torch's own generators need none.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lartpc_ds.exact.grid.cuts import Function
from lartpc_ds.exact.grid.tiles import Clock, Tiles
from lartpc_ds.exact.ops.operator import CallSite, Operator, Result, TileCallSite, canonical, cut_dims, map_cut
from lartpc_ds.exact.ops.windows import OutBounds, outputs_of

__all__ = ["OPERATORS", "Draw", "Dropout", "draws_unseeded", "uniform"]

_UNSEEDED = frozenset(
    """rand randn randint rand_like randn_like randint_like randperm normal uniform exponential geometric cauchy
    log_normal poisson multinomial bernoulli random rrelu alpha_dropout feature_alpha_dropout dropout1d dropout3d
    gumbel_softmax""".split()
)
"""Functions that draw from torch's own generator."""
_DROPS_PAIRS = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
"""Attention draws which pairs of tokens it drops; this is the place of that share among its arguments."""


def draws_unseeded(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether a call draws numbers of torch's own generator.

    They would differ from rank to rank and from strip to strip.
    """
    if not kwargs.get("training", True):
        return False
    place = _DROPS_PAIRS.get(name)
    if place is None:
        return name in _UNSEEDED
    return bool(args[place] if len(args) > place else kwargs.get("dropout_p", 0.0))


def uniform(clock: Clock, layer: str, like: Tensor, rows: tuple[int, int], cols: tuple[int, int], width: int) -> Tensor:
    """Return uniform numbers in [0, 1), (N, C, rows, cols) in float32.

    They are those of `rows` and `cols` of maps that are `width` columns wide.
    """
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


def _trains(args: Any, kwargs: Any) -> bool:
    """Read the third argument of dropout, which torch's own functions call `train`."""
    return bool(args[0] if args else kwargs.get("training", kwargs.get("train", True)))


@dataclass(frozen=True, slots=True)
class Dropout:
    """F.dropout of a map that is cut at `bounds`, or of whole tensors (None), which all tiles must drop alike.

    With `whole_channels` it drops (sample, channel) pairs, as F.dropout2d does.
    """

    layer: str
    bounds: OutBounds | None
    whole_channels: bool = False

    def __call__(
        self,
        tiles: Tiles,
        function: Function,
        /,
        input: Tensor,
        p: float = 0.5,
        *args: Any,
        inplace: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Return the outputs of this rank's tile."""
        if not _trains(args, kwargs) or p == 0:
            return input
        kept = (self._numbers(tiles, input) >= p).to(input.dtype)
        if p < 1:
            kept.div_(1 - p)
        return input.mul_(kept) if inplace or args[1:] == (True,) else input * kept

    def _numbers(self, tiles: Tiles, x: Tensor) -> Tensor:
        if self.whole_channels:
            return uniform(tiles.clock, self.layer, x, (0, 1), (0, 1), 1).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        if self.bounds is None:
            return _uniform_for_whole(tiles, self.layer, x)
        rows, cols = outputs_of(self.bounds, tiles)
        return uniform(tiles.clock, self.layer, x, rows, cols, width=self.bounds[1][-1])


@dataclass(frozen=True, slots=True)
class Draw:
    """Tensor.bernoulli_(p) of a whole tensor whose first dimension is the sample: stochastic depth."""

    layer: str

    def __call__(self, tiles: Tiles, function: Function, /, input: Tensor, p: float = 0.5) -> Tensor:
        """Return numbers that are the same on all tiles."""
        return input.copy_(_uniform_for_whole(tiles, self.layer, input) < p)


def _uniform_for_whole(tiles: Tiles, layer: str, x: Tensor) -> Tensor:
    """Return uniform numbers for a whole tensor whose first dimension is the sample."""
    flat = x.reshape(len(x), 1, 1, -1)
    return uniform(tiles.clock, layer, flat, (0, 1), (0, flat.shape[3]), flat.shape[3]).reshape(x.shape)


def dropout_on_tiles(
    site: TileCallSite, function: Function, input: Tensor, p: float = 0.5, *args: Any, **kwargs: Any
) -> Result:
    """Plan dropout of maps and of whole tensors: all tiles drop what one device would drop."""
    layer, cut = site.next_draw(), site.cut_of(input)
    result = site.mark(function(input, p, *args, **kwargs), cut)
    if p == 0:
        return result, None
    if cut is not None and not (site.one_tile and (cut.dims != (2, 3) or input.ndim != 4)):
        cut = map_cut(site, input)
        return result, Dropout(layer, cut.bounds, whole_channels=canonical(function) != "dropout")
    return result, Dropout(layer, None, whole_channels=canonical(function) != "dropout")


def bernoulli(site: TileCallSite, function: Function, input: Tensor, p: Any = 0.5) -> Result:
    """Plan Tensor.bernoulli_(p) of whole tensors."""
    layer = site.next_draw()
    if function.__name__ != "bernoulli_":
        raise site.refuse("draws random numbers that differ from rank to rank; use Tensor.bernoulli_ for whole events")
    if site.cut_of(input) is not None or isinstance(p, Tensor):
        raise site.refuse("draws for every pixel of a tile; use dropout, whose masks do not depend on tiles")
    return function(input, p), Draw(layer)


def dropout_in_evaluation(
    site: CallSite, function: Function, input: Tensor, p: float = 0.5, *args: Any, **kwargs: Any
) -> Result:
    """Run dropout in evaluation only.

    In training each strip would draw a mask of its own, and another one when it runs again; patches that are equal
    would no longer be.
    """
    if _trains(args, kwargs) and p > 0:
        raise site.refuse(
            f"with p = {p} draws random masks, which {site.words.parts} cannot share; set p = 0, or "
            f"{site.words.way_out}"
        )
    return site.cut_like(function(input, p, *args, **kwargs), input, cut_dims(site, input)), None


_DROPOUT = Operator(
    on_tiles=dropout_on_tiles,
    on_whole=dropout_on_tiles,
    on_strips=dropout_in_evaluation,
    on_patches=dropout_in_evaluation,
)
OPERATORS = {
    **dict.fromkeys(("dropout", "dropout2d", "feature_dropout"), _DROPOUT),
    "bernoulli": Operator(on_tiles=bernoulli, on_whole=bernoulli),
}
