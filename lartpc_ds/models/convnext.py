"""A ConvNeXt-style network (arXiv:2201.03545, the tiny one at width 96) as a flat trunk of blocks.

Three things differ from the paper, each for the sake of whole events. Pointwise layers are 1x1 convolutions, so that a
spatial conversion meets convolutions only. The last norm stands before the global pool, because after it a BatchNorm of
one pooled event would have no variance. There is no stochastic depth.
"""

import torch
from torch import Tensor, nn

from lartpc_ds.models.norms import make_norm

__all__ = ["ConvNeXtBlock", "convnext_trunk"]

_REPEATS_OF_STAGE = (3, 3, 9, 3)


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with bias; overlapping kernels (stride 1) are padded to keep the size, patches are not."""
    padding = kernel // 2 if stride == 1 else 0
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=padding, groups=groups)
    nn.init.trunc_normal_(conv.weight, std=0.02)
    nn.init.zeros_(torch.as_tensor(conv.bias))
    return conv


class ConvNeXtBlock(nn.Module):
    """The block x + scale * pointwise(gelu(pointwise(norm(depthwise7x7(x))))), which keeps the shape."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.depthwise = _conv(channels, channels, 7, groups=channels)
        self.norm = make_norm(norm, channels)
        self.expand = _conv(channels, 4 * channels, 1)
        self.gelu = nn.GELU()
        self.reduce = _conv(4 * channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        The scale takes the dtype of the map, because a float32 scale would make a bfloat16 map float32, twice as large.
        """
        y: Tensor = self.reduce(self.gelu(self.expand(self.norm(self.depthwise(x)))))
        return x + self.scale.to(y.dtype) * y


def convnext_trunk(*, planes: int, width: int, norm: str) -> tuple[dict[str, nn.Module], int]:
    """The named blocks from (N, planes, H, W) to (N, 8 * width, H // 32, W // 32), and the number 8 * width."""
    trunk: dict[str, nn.Module] = {"stem": nn.Sequential(_conv(planes, width, 4, 4), make_norm(norm, width))}
    for stage, repeats in enumerate(_REPEATS_OF_STAGE):
        channels = width << stage
        if stage > 0:
            before = channels // 2
            trunk[f"down{stage + 1}"] = nn.Sequential(make_norm(norm, before), _conv(before, channels, 2, 2))
        for index in range(repeats):
            trunk[f"stage{stage + 1}_{index}"] = ConvNeXtBlock(channels, norm)
    trunk["norm"] = make_norm(norm, channels)
    return trunk, channels
