"""The halo exchange goes from the tile that a rank owns to the rectangle that its outputs need, and back.

The adjoint of receiving a pixel is to send its gradient home, where it is added. Rejected: pasting received pixels in
as constants, which leaves the outputs right and the gradients at every seam wrong, and forward tests never see that.

Every rank takes part in every exchange with the same autograd node, also a rank whose own tile needs nothing;
`grid.order` says what goes wrong otherwise.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.order import Messenger
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Rect, TileView

__all__ = [
    "add_home",
    "assembled",
    "empty_map",
    "fetch",
    "memory_format_of",
    "padded",
    "part_of",
    "send_home",
    "taken_apart",
]


def part_of(x: Tensor, rect: Rect, origin: Rect | None = None) -> Tensor:
    """Return the view of `rect` in a map that covers `origin`; without an origin the map begins at pixel (0, 0)."""
    (top, bottom), (left, right) = rect
    row, col = (0, 0) if origin is None else (origin.rows[0], origin.cols[0])
    return x[:, :, top - row : bottom - row, left - col : right - col]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return channels-last if x is laid out so, and torch's usual format otherwise."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_map(like: Tensor, size: tuple[int, int], memory_format: torch.memory_format) -> Tensor:
    """Return a map (N, C, *size) of the events, channels, type and device of `like`, without values."""
    return torch.empty((*like.shape[:2], *size), dtype=like.dtype, device=like.device, memory_format=memory_format)


def fetch(tiles: Tiles, x: Tensor, here: TileView) -> Any:
    """Start to send this rank's pixels to those who need them; call the result for the pieces that it needs."""
    outgoing = [(piece.peer, part_of(x, piece.rect, here.own)) for piece in here.outgoing]
    return tiles.send_pieces(outgoing, here.incoming, x)


def send_home(tiles: Tiles, gradients: list[Tensor], here: TileView, like: Tensor) -> Any:
    """Start to send the gradients of `here.incoming` to their owners; this is the adjoint of `fetch`.

    Call the result for the gradients that came for own pixels.
    """
    outgoing = [(piece.peer, gradient) for piece, gradient in zip(here.incoming, gradients, strict=True)]
    return tiles.send_pieces(outgoing, here.outgoing, like)


def add_home(gradient: Tensor, pieces: list[tuple[Rect, Tensor]], here: TileView) -> Tensor:
    """Add the gradients that came home to the gradient of the own tile, in place."""
    for rect, piece in pieces:
        part_of(gradient, rect, here.own).add_(piece)
    return gradient


def assembled(tiles: Tiles, x: Tensor, here: TileView, fill: float = 0.0) -> Tensor:
    """(N, C, own) -> (N, C, need), where pixels outside the image are `fill`.

    Where `here.local` is true, it is a view of x.
    """
    if here.local:
        (top, bottom), (left, right) = here.need
        rows = x.narrow(2, top - here.own.rows[0], bottom - top)
        return rows.narrow(3, left - here.own.cols[0], right - left)
    pieces = fetch(tiles, x, here)
    y = empty_map(x, here.need.shape, memory_format_of(x))
    image = Rect((0, here.size[0]), (0, here.size[1]))
    if here.need.common(image) != here.need:
        y.fill_(fill)
    kept = here.need.common(here.own)
    if kept is not None:
        part_of(y, kept, here.need).copy_(part_of(x, kept, here.own))
    for rect, piece in pieces():
        part_of(y, rect, here.need).copy_(piece)
    return y


def taken_apart(tiles: Tiles, gradient: Tensor, here: TileView) -> Tensor:
    """(N, C, need) -> (N, C, own): owners add the halo's gradients; this is the adjoint of `assembled`."""
    travelling = [part_of(gradient, rect, here.need) for _, rect in here.incoming]
    pieces = send_home(tiles, travelling, here, gradient)
    events, channels = gradient.shape[:2]
    home = gradient.new_zeros((events, here.own.shape[0], here.own.shape[1], channels)).permute(0, 3, 1, 2)
    kept = here.need.common(here.own)
    if kept is not None:
        part_of(home, kept, here.own).copy_(part_of(gradient, kept, here.need))
    return add_home(home, pieces(), here)


class _Padded(Messenger):
    """(N, C, own) -> (N, C, need); gradients: (N, C, need) -> (N, C, own)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tiles: Tiles, here: TileView, fill: float) -> Tensor:
        ctx.tiles, ctx.here = tiles, here
        return assembled(tiles, x, here, fill)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return taken_apart(ctx.tiles, gradients[0], ctx.here), None, None, None


def padded(tiles: Tiles, x: Tensor, here: TileView, fill: float = 0.0) -> Tensor:
    """Return the rectangle that this rank needs.

    It is a map of its own, or a view of x where no rank needs more than it owns.
    """
    if here.local:
        return assembled(tiles, x, here)
    y: Tensor = _Padded.apply(x, tiles, here, fill)  # type: ignore[no-untyped-call]
    return y
