"""A U-Net as people write it: shared pool and activation modules, skips joined after odd sizes were halved."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet"]


def _double(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.GroupNorm(2, channels_out),
        nn.LeakyReLU(0.1, inplace=True),
    )


class UNet(nn.Module):
    """(N, planes, H, W) -> a score a pixel (N, num_classes, H, W); `fit` brings odd sizes together."""

    def __init__(self, planes: int, num_classes: int, width: int = 4, fit: str = "interpolate") -> None:
        super().__init__()
        self.fit = fit
        self.first, self.second, self.third = _double(planes, width), _double(width, 2 * width), _double(2 * width, 8)
        self.pool = nn.MaxPool2d(2, ceil_mode=fit == "ceil")
        self.up2 = nn.ConvTranspose2d(8, 2 * width, 2, stride=2)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.left2, self.left1 = _double(4 * width, 2 * width), _double(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def _joined(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.fit == "interpolate":
            x = F.interpolate(x, size=skip.shape[2:])
        else:
            rows, cols = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [cols // 2, cols - cols // 2, rows // 2, rows - rows // 2])
        return torch.cat([skip, x], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(self.pool(first))
        third = self.third(self.pool(second))
        y = self.left2(self._joined(self.up2(third), second))
        return self.head(self.left1(self._joined(self.up1(y), first)))
