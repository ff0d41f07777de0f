"""Windows of a map that is held as its distinct patches: every patch is read with its surroundings and runs unpadded.

What is read is never kept. The backward pass reads it again, which takes a small part of a convolution's time, so a
layer keeps the map that it got, as torch's own does. Gradients are those of the dense network: a patch that stands for
many places is read by many, and gets the sum of what they send (`grid.readings`).

Rejected: autograd of a copy with surroundings, which would keep one more map for each convolution.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.pieces import has_no_data
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.readings import Bags, EventReading, PatchReading, PixelReading, Reading
from lartpc_ds.exact.kernels.weight_gradients import weight_gradient

__all__ = ["Options", "convolved", "max_pooled", "moved", "sums_of_events", "windows"]

Pair = tuple[int, int]


def _sums(rows: Tensor, bags: Bags) -> Tensor:
    """(rows, D) -> (bags, D): the sum of the rows of each bag."""
    if has_no_data(rows):
        return rows.new_empty(len(bags.offsets) - 1, rows.shape[1])
    index, offsets = bags.to(rows.device)
    sums: Tensor = torch.ops.aten._embedding_bag_forward_only(rows, index, offsets, False, 0, False, None, True)[0]
    return sums


class _Read(torch.autograd.Function):
    """(rows, D) -> (rows of the result, D)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, reading: Reading) -> Tensor:
        assert len(rows) == reading.rows
        ctx.reading = reading
        return _sums(rows, reading.bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _sums(gradients[0].contiguous(), ctx.reading.home), None


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
    if outside and len(reading.outside) and not has_no_data(y):
        y = y.index_fill(0, reading.outside.to(y.device), outside)
    return _map(y, reading.shape)


def sums_of_events(x: Tensor, patches: Patches) -> Tensor:
    """(patches, C, rows, columns) -> (events, C): sums over the pixels of whole maps, at least in float32."""
    exact = torch.promote_types(x.dtype, torch.float32)
    pixels = torch.from_numpy(patches.pixels()).to(x.device, exact)[:, None]
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


def _brought_home(gradient: Tensor, x: Tensor, reading: PixelReading) -> Tensor:
    """Return the gradient like x, from the gradient of what was read of x."""
    return _map(_sums(_pixels(gradient), reading.home), (len(x), *x.shape[2:]))


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
        if wanted == (False, True) and not self.transposed:
            weights = weight_gradient(gradient, x, weight, self.stride, (0, 0), self.dilation, self.groups)
            return None, weights
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


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, reading: PixelReading, options: Options) -> Tensor:
    """(patches, C, rows, columns) -> (patches, K, rows, columns), the convolution of what is read."""
    y: Tensor = _Convolved.apply(x, weight, bias, reading, options)  # type: ignore[no-untyped-call]
    return y


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, reading: PixelReading, options: Options
    ) -> Tensor:
        ctx.reading, ctx.options = reading, options
        ctx.save_for_backward(x, weight)
        return options.forward(_map(_sums(_pixels(x), reading.bags), reading.shape), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        reading, options = ctx.reading, ctx.options
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        g_x = g_weight = None
        if wants_weight:
            read = _map(_sums(_pixels(x), reading.bags), reading.shape)
            _, g_weight = options.backward(gradient, read, weight, (False, True))
            del read  # it and its gradient are the largest of the pass, and are not alive together
        if wants_x:
            shape = (reading.shape[0], x.shape[1], *reading.shape[1:])
            unread = x.new_empty(1).expand(shape)
            g_read, _ = options.backward(gradient, unread, weight, (True, False))
            g_x = _brought_home(g_read, x, reading)
        g_bias = (
            gradient.sum((0, 2, 3), dtype=torch.promote_types(gradient.dtype, torch.float32)) if wants_bias else None
        )
        return g_x, g_weight, None if g_bias is None else g_bias.to(weight.dtype), None, None


def max_pooled(x: Tensor, reading: PixelReading, target: Patches, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """(patches, C, rows, columns) -> (patches of `target`, C, rows, columns), the max pool of what is read.

    Pixels outside the map are minus infinity. Where a patch of the result sticks out of its map it is 0, because minus
    infinity would make nothing of every later sum.
    """
    y: Tensor = _MaxPooled.apply(x, reading, target, kernel, stride, dilation)  # type: ignore[no-untyped-call]
    return y


class _MaxPooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reading: PixelReading, target: Patches, *pool: Pair) -> Tensor:
        read = windows(x, reading, -torch.inf)
        kernel, stride, dilation = pool
        y, places = torch.ops.aten.max_pool2d_with_indices(read, kernel, stride, (0, 0), dilation)
        ctx.reading, ctx.pool, ctx.shape = reading, pool, x.shape
        small = read.shape[2] * read.shape[3] <= torch.iinfo(torch.int16).max
        ctx.save_for_backward(places.to(torch.int16) if small else places)
        nowhere = torch.from_numpy(target.pixels() == 0).to(y.device)[:, None]
        y[: target.special].masked_fill_(nowhere, 0)
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
        home = _sums(_pixels(g_read), reading.home)
        return _map(home, (ctx.shape[0], *ctx.shape[2:])), *(None for _ in range(5))
