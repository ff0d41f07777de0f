"""A small U-Net with skips, as an engineer would write one: plain single-device code, for images of any size."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["UNet", "unet"]


def _double(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Scores of each pixel: (events, channels, rows, columns) to (events, classes, rows, columns)."""

    def __init__(self, planes: int, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.first = _double(planes, width)
        self.second = _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up_second = _double(6 * width, 2 * width)
        self.up_first = _double(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.first(images)
        second = self.second(F.max_pool2d(first, 2, ceil_mode=True))
        x = self.bottom(F.max_pool2d(second, 2, ceil_mode=True))
        x = self.up_second(torch.cat([second, _to_size(x, second)], 1))
        x = self.up_first(torch.cat([first, _to_size(x, first)], 1))
        scores: torch.Tensor = self.head(x)
        return scores


def _to_size(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def unet(planes: int, num_classes: int) -> nn.Module:
    """What `model.target` names."""
    return UNet(planes, num_classes)
