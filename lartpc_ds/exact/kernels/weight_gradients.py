"""The weight gradient of a convolution, band by band.

On CPU torch turns both maps of a convolution into another format before it sums over their pixels: for a moment four
times the map, which is the peak of a step whose maps are not kept. The sum over bands of rows needs that of one band
only, and takes no longer. Each band is rounded to the maps' precision, their sum once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.grid.pieces import in_pieces, rows_at_once

__all__ = ["weight_gradient"]

_BAND_BYTES = 1 << 23

Pair = tuple[int, int]


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Gradient (N, K, out), x (N, C, h, w) -> like weight."""
    outputs = gradient.shape[2]
    row_bytes = max(gradient.nbytes, x.nbytes) // outputs
    rows = outputs if gradient.device.type != "cpu" else rows_at_once(gradient, row_bytes, _BAND_BYTES)
    if rows >= outputs:
        return _of_band(gradient, x, weight, stride, padding, dilation, groups)
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    with in_pieces():
        for start in range(0, outputs, rows):
            stop = min(start + rows, outputs)
            first = start * stride[0] - padding[0]
            last = (stop - 1) * stride[0] - padding[0] + dilation[0] * (weight.shape[2] - 1) + 1
            band = x[:, :, max(first, 0) : min(last, x.shape[2])]
            if first < 0 or last > x.shape[2]:
                band = F.pad(band, (0, 0, max(-first, 0), max(last - x.shape[2], 0)))
            part = gradient[:, :, start:stop]
            total += _of_band(part, band, weight, stride, (0, padding[1]), dilation, groups)
    return total.to(weight.dtype)


def _of_band(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    _, result, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False)
    )
    weight_gradient: Tensor = result
    return weight_gradient
