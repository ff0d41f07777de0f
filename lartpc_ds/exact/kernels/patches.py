"""Windows of a map that is held as its distinct patches: every patch is read with its surroundings and runs unpadded.

Small patches have wide surroundings, so the convolution of patches of few pixels is a product of matrices.

What is read is never kept. The backward pass reads it again, which takes a small part of a convolution's time, so a
layer keeps the map that it got, as torch's own does. Gradients are those of the dense network: a patch that stands for
many places is read by many, and gets the sum of what they send (`grid.readings`).

Rejected: autograd of a copy with surroundings, which would keep one more map for each convolution.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.pieces import has_no_data, in_pieces, rows_at_once
from lartpc_ds.exact.grid.readings import Bags, EventReading, PatchReading, PixelReading, Reading, TapReading

__all__ = ["Options", "convolved", "max_pooled", "moved", "pixel_counts", "repeat_edges", "sums_of_events", "windows"]

_READ_BYTES = 1 << 23
"""The bytes of patches that a weight gradient reads at once on a CPU, which turns them into another format."""

Pair = tuple[int, int]


def _sums(rows: Tensor, bags: Bags) -> Tensor:
    """(rows, D) -> (bags, D): the sum of the rows of each bag."""
    chosen, offsets = bags.to(rows.device)
    sums: Tensor = torch.ops.aten._embedding_bag_forward_only(rows, chosen, offsets, False, 0, False, None, True)[0]
    return sums


def _read(rows: Tensor, reading: Reading) -> Tensor:
    """(rows, D) -> (rows of the result, D)."""
    assert len(rows) == reading.rows
    if rows.is_meta:
        return rows.new_empty(reading.results, rows.shape[1])
    return _sums(rows, _bags(rows, reading))


def _bags(rows: Tensor, reading: Reading) -> Bags:
    return reading.traced_bags if has_no_data(rows) else reading.bags


def _brought_home(gradient: Tensor, reading: Reading) -> Tensor:
    """(rows of the result, D) -> (rows, D)."""
    if gradient.is_meta:
        return gradient.new_empty(reading.rows, gradient.shape[1])
    return _sums(gradient.contiguous(), reading.traced_home if has_no_data(gradient) else reading.home)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, reading: Reading) -> Tensor:
        ctx.reading = reading
        return _read(rows, reading)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _brought_home(gradients[0], ctx.reading), None


def moved(x: Tensor, reading: PatchReading) -> Tensor:
    """(patches, ...) -> (patches of the result, ...)."""
    four = x.ndim == 4
    rows = (x.permute(0, 2, 3, 1) if four else x).contiguous()
    y: Tensor = _Read.apply(rows.reshape(len(x), -1), reading)  # type: ignore[no-untyped-call]
    y = y.reshape(-1, *rows.shape[1:])
    return y.permute(0, 3, 1, 2) if four else y


def windows(x: Tensor, reading: PixelReading, outside: float = 0.0) -> Tensor:
    """(patches, C, rows, columns) -> what is read of it, with a value for the pixels outside the map."""
    y: Tensor = _Read.apply(_pixels(x), reading)  # type: ignore[no-untyped-call]
    if outside and not has_no_data(y) and len(reading.outside):
        y = y.index_fill(0, reading.outside.to(y.device), outside)
    return _map(y, reading.shape)


def pixel_counts(patches: Patches, x: Tensor) -> Tensor:
    """Return for how many pixels of the map each pixel of the special patches stands, (special, 1, rows, columns)."""
    if has_no_data(x):
        return x.new_empty(patches.special, 1, *patches.shape, dtype=torch.float32)
    return torch.from_numpy(patches.pixels()).to(x.device)[:, None]


@torch.no_grad()
def repeat_edges(x: Tensor, patches: Patches) -> Tensor:
    """Let pixels outside the map repeat its last row or column, in place; nobody else may have x yet.

    Their gradients are zero, so those of x stay as they are.
    """
    if not has_no_data(x):
        values = x.data  # whose changes autograd does not see, also where x is a view
        for dim, inside, sticking_out in patches.sticking_out:
            chosen = torch.from_numpy(sticking_out).to(x.device)
            outside = values.narrow(dim, inside, x.shape[dim] - inside)
            outside[chosen] = values[chosen].narrow(dim, inside - 1, 1)
    return x


def sums_of_events(x: Tensor, patches: Patches) -> Tensor:
    """(patches, C, rows, columns) -> (events, C): sums over the pixels of whole maps, at least in float32."""
    exact = torch.promote_types(x.dtype, torch.float32)
    pixels = pixel_counts(patches, x).to(exact)
    special = (x[: patches.special].to(exact) * pixels).sum((2, 3))
    of_patches = torch.cat([special, x[patches.special :].sum((2, 3), dtype=exact)])
    y: Tensor = _Read.apply(of_patches, EventReading(patches))  # type: ignore[no-untyped-call]
    return y


def _pixels(x: Tensor) -> Tensor:
    """(n, C, h, w) -> (n * h * w, C), which is the memory of a channels-last map."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _map(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(n * h * w, C) -> (n, C, h, w), channels-last."""
    return pixels.view(*shape, pixels.shape[1]).permute(0, 3, 1, 2)


class Options(NamedTuple):
    """The arguments of a convolution that is not padded."""

    stride: Pair
    dilation: Pair
    groups: int
    transposed: bool = False

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve a map."""
        y: Tensor = torch.ops.aten.convolution(
            x, weight, bias, self.stride, (0, 0), self.dilation, self.transposed, (0, 0), self.groups
        )
        return y

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Return the gradients of x and weight, each None where it is not wanted; x may have no values for its own."""
        g_x, g_weight, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            None,
            self.stride,
            (0, 0),
            self.dilation,
            self.transposed,
            (0, 0),
            self.groups,
            (*wanted, False),
        )
        return g_x, g_weight


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution of what a `TapReading` reads: every window is a row of a matrix."""

    side: Pair
    """The rows and columns of a patch of the result."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(pixels * taps, C) -> (patches, K, rows, columns).

        It is no view, because functions may not work in place on a view that an autograd function gives.
        """
        matrix = _matrix(weight)
        rows = x.view(-1, len(matrix))
        shape = len(rows) // (self.side[0] * self.side[1]), len(weight), *self.side
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        pixels = y.permute(0, 2, 3, 1).view(-1, len(weight))
        if bias is None:
            torch.mm(rows, matrix, out=pixels)
        else:
            torch.addmm(bias, rows, matrix, out=pixels)
        return y

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Return the gradients of x and weight, each None where it is not wanted."""
        rows, matrix = _pixels(gradient), _matrix(weight)
        g_x = (rows @ matrix.T).view(-1, weight.shape[1]) if wanted[0] else None
        if not wanted[1]:
            return g_x, None
        out, channels, *kernel = weight.shape
        product = rows.T @ x.view(len(rows), -1)
        return g_x, product.view(out, *kernel, channels).permute(0, 3, 1, 2)


def _matrix(weight: Tensor) -> Tensor:
    """(K, C, k, k) -> (k * k * C, K)."""
    return weight.permute(2, 3, 1, 0).reshape(-1, len(weight))


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, reading: PixelReading, options: Options) -> Tensor:
    """(patches, C, rows, columns) -> (patches, K, rows, columns), the convolution of what is read."""
    how = Product(reading.side) if isinstance(reading, TapReading) else options
    y: Tensor = _Convolved.apply(x, weight, bias, reading, how)  # type: ignore[no-untyped-call]
    return y


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, reading: PixelReading, how: Options | Product
    ) -> Tensor:
        ctx.reading, ctx.how = reading, how
        ctx.save_for_backward(x, weight)
        return how.forward(_windows(_read(_pixels(x), reading), reading), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        reading, how = ctx.reading, ctx.how
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        g_x = g_weight = None
        if wants_weight:
            g_weight = _weight_gradient(gradient, x, weight, reading, how)
        if wants_x:
            unread = x.new_empty(*reading.shape, x.shape[1]).permute(0, 3, 1, 2)  # only its size is looked at
            g_read, _ = how.backward(gradient, unread, weight, (True, False))
            rows = g_read if isinstance(reading, TapReading) else _pixels(g_read)
            g_x = _map(_brought_home(rows, reading), (len(x), *x.shape[2:]))
        g_bias = (
            gradient.sum((0, 2, 3), dtype=torch.promote_types(gradient.dtype, torch.float32)) if wants_bias else None
        )
        return g_x, g_weight, None if g_bias is None else g_bias.to(weight.dtype), None, None


def _windows(read: Tensor, reading: PixelReading) -> Tensor:
    """Return what some patches have read as a map, or as the rows of a matrix."""
    return read if isinstance(reading, TapReading) else _map(read, (len(read) // reading.window, *reading.shape[1:]))


def _weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, reading: PixelReading, how: Options | Product
) -> Tensor:
    """Return the gradient like weight; some patches at a time are read, and their sums are rounded once."""
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    pixels, patches = _pixels(x), reading.shape[0]
    patch_bytes = max(gradient.nbytes // patches, x.shape[1] * reading.window * x.element_size())
    # a trace would take an eighth of the gradient, which may be far less than a run reads at once
    at_once = max(rows_at_once(gradient, patch_bytes, _READ_BYTES), _READ_BYTES // patch_bytes)
    with in_pieces():
        for first in range(0, patches, at_once):
            last = min(first + at_once, patches)
            read = (
                pixels.new_empty((last - first) * reading.window, pixels.shape[1])
                if pixels.is_meta
                else _sums(pixels, _bags(pixels, reading).of_rows(first * reading.window, last * reading.window))
            )
            _, part = how.backward(gradient[first:last], _windows(read, reading), weight, (False, True))
            total += part
    return total.to(weight.dtype)


def max_pooled(x: Tensor, reading: PixelReading, target: Patches, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """(patches, C, rows, columns) -> (patches of `target`, C, rows, columns), the max pool of what is read.

    Pixels outside the map are minus infinity.
    """
    y: Tensor = _MaxPooled.apply(x, reading, kernel, stride, dilation)  # type: ignore[no-untyped-call]
    return repeat_edges(y, target)


class _MaxPooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reading: PixelReading, *pool: Pair) -> Tensor:
        read = windows(x, reading, -torch.inf)
        kernel, stride, dilation = pool
        y, places = torch.ops.aten.max_pool2d_with_indices(read, kernel, stride, (0, 0), dilation)
        ctx.reading, ctx.pool, ctx.shape = reading, pool, x.shape
        small = read.shape[2] * read.shape[3] <= torch.iinfo(torch.int16).max
        ctx.save_for_backward(places.to(torch.int16) if small else places)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (places,), reading = gradients, ctx.saved_tensors, ctx.reading
        kernel, stride, dilation = ctx.pool
        shape = (*reading.shape, ctx.shape[1])
        read = gradient.new_empty(shape).permute(0, 3, 1, 2)  # only its shape and strides are looked at
        g_read = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, read, kernel, stride, (0, 0), dilation, False, places.to(torch.int64)
        )
        home = _brought_home(_pixels(g_read), reading)
        return _map(home, (ctx.shape[0], *ctx.shape[2:])), *(None for _ in range(4))
