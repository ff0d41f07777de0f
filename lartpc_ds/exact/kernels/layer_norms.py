"""A layer norm and the ReLU after it keep the norm's input only (see `grid.remade`).

Every pixel is normalised by itself, so the backward goes piece by piece: it makes the norm again to see where the ReLU
was open. Rejected: torch's own pair, which keeps the norm's input and its result.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lartpc_ds.exact.grid.pieces import in_pieces, rows_at_once
from lartpc_ds.exact.grid.remade import Remade, own_copy

__all__ = ["layer_norm_relu"]


def layer_norm_relu(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    remade: Remade,
    owns_gradient: bool,
) -> Tensor:
    """Return relu(F.layer_norm(x, shape, weight, bias, eps)), noted in `remade`.

    `owns_gradient` means the same as in `norms.normalise`.
    """
    x = x.contiguous()
    y: Tensor = _LayerNormReLU.apply(x, weight, bias, list(shape), eps, owns_gradient)  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled():
        own_weight, own_bias, again = own_copy(weight), own_copy(bias), remade.again(x)
        remade.note(y, lambda: torch.native_layer_norm(again(), list(shape), own_weight, own_bias, eps)[0].relu_())
    return y


class _LayerNormReLU(torch.autograd.Function):
    """x (..., *shape), weight and bias of `shape` or None -> y like x; gradients like their tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shape: list[int],
        eps: float,
        owns_gradient: bool,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.shape, ctx.eps, ctx.owns_gradient = shape, eps, owns_gradient
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y.relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        shape, wanted = ctx.shape, (True, weight is not None, bias is not None)
        flat, gradient = x.reshape(-1, *shape), gradients[0].reshape(-1, *shape)
        means, rstds = mean.reshape(-1, *(1 for _ in shape)), rstd.reshape(-1, *(1 for _ in shape))
        g_x = gradient if ctx.owns_gradient and gradient.dtype == x.dtype else torch.empty_like(flat)
        totals = [None if parameter is None else torch.zeros_like(parameter) for parameter in (weight, bias)]
        pixels = rows_at_once(flat, flat[0].numel() * flat.element_size())
        with in_pieces():
            for start in range(0, len(flat), pixels):
                piece = slice(start, start + pixels)
                y = torch.native_layer_norm(flat[piece], shape, weight, bias, ctx.eps)[0]
                opened = torch.ops.aten.threshold_backward(gradient[piece], y, 0)
                g_x[piece], *others = torch.ops.aten.native_layer_norm_backward(
                    opened, flat[piece], shape, means[piece], rstds[piece], weight, bias, wanted
                )
                for total, more in zip(totals, others, strict=True):
                    if total is not None:
                        total += more
        return g_x.reshape(x.shape), totals[0], totals[1], None, None, None
