"""The three normalisations, which differ in what a statistic runs over.

`batch` runs over all images and pixels of one channel. `group` runs over all pixels of a group of channels of one
image; it does not depend on the batch, so 1 rank and N data ranks train identically. `layer` runs over all channels of
one pixel and needs no neighbour. Each is torch's own module or a subclass of it, so that a conversion recognises it by
type.
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lartpc_ds.errors import UserError

__all__ = ["NORMS", "PixelLayerNorm", "make_norm"]


class PixelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel, (N, C, H, W) -> (N, C, H, W) (ConvNeXt, arXiv:2201.03545).

    Both permutes are views if x is channels-last in memory, and the output always is channels-last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and keep the dtype of x.

        Autocast on CUDA would give float32, which takes twice the memory of the feature map.
        """
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2).to(x.dtype)


def _group_norm(channels: int) -> nn.GroupNorm:
    """A group norm with 32 groups (arXiv:1803.08494), or with the largest divisor of 32 that divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _layer_norm(channels: int) -> PixelLayerNorm:
    return PixelLayerNorm(channels, eps=1e-6)


NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": _group_norm, "layer": _layer_norm}


def make_norm(kind: str, channels: int) -> nn.Module:
    """The normalisation `kind` of an (N, channels, H, W) map; raises UserError if `kind` is not one of NORMS."""
    if kind not in NORMS:
        raise UserError(f"model.norm = {kind!r} is not known; choose one of {', '.join(NORMS)}")
    return NORMS[kind](channels)
