"""The weight gradient of a convolution is computed band by band.

On a CPU torch turns both maps of a convolution into another format before it sums over their pixels. For a moment that
takes four times the map, which is the peak of a step whose maps are not kept. The sum over bands of rows needs that for
one band only, and takes no longer. Each band is rounded to the maps' precision, and their sum is rounded once.
Rejected: one call for the whole map, because of that peak.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.pieces import in_pieces, rows_at_once
from lartpc_ds.exact.grid.windows import Window

__all__ = ["weight_gradient"]

_BAND_BYTES = 1 << 23

Pair = tuple[int, int]


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Return a gradient like weight, from the gradient (N, K, out) and x (N, C, h, w)."""
    outputs = gradient.shape[2]
    row_bytes = max(gradient.nbytes, x.nbytes) // outputs
    rows = outputs if gradient.device.type != "cpu" else rows_at_once(gradient, row_bytes, _BAND_BYTES)
    if rows >= outputs:
        return _gradient_of_band(gradient, x, weight, stride, padding, dilation, groups)
    window = Window(weight.shape[2], stride[0], padding[0], dilation[0])
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    with in_pieces():
        for start in range(0, outputs, rows):
            stop = min(start + rows, outputs)
            first, last = window.need((start, stop))
            band = x[:, :, max(first, 0) : min(last, x.shape[2])]
            if first < 0 or last > x.shape[2]:
                band = F.pad(band, (0, 0, max(-first, 0), max(last - x.shape[2], 0)))
            part = gradient[:, :, start:stop]
            total += _gradient_of_band(part, band, weight, stride, (0, padding[1]), dilation, groups)
    return total.to(weight.dtype)


def _gradient_of_band(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    _, band_gradient, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False)
    )
    assert isinstance(band_gradient, Tensor)
    return band_gradient
