"""Images of each kind as a user brings them, small and made up, with a network and a loss."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unet import unet

__all__ = [
    "COLS",
    "ROWS",
    "Dense",
    "Labelled",
    "Own",
    "Pooled",
    "Spectrum",
    "flat",
    "flat_pooled",
    "focal",
    "halving",
    "squares",
    "unet",
]

ROWS, COLS = 40, 56


class Dense:
    image_shape = (2, ROWS, COLS)
    classes = ("background", "track", "shower")

    def __len__(self) -> int:
        return 12

    def read(self, index: int, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[NDArray[np.float32], Any]:
        whole = np.random.default_rng(index).integers(0, 3, (2, ROWS, COLS))
        part = whole[:, slice(*rows), slice(*cols)]
        return part.astype(np.float32), self.target(index, part)

    def target(self, index: int, part: NDArray[Any]) -> Any:
        return part[0]


class Labelled(Dense):
    labels = tuple(index % 3 for index in range(12))

    def target(self, index: int, part: NDArray[Any]) -> Any:
        return self.labels[index]


class Own(Dense):
    def target(self, index: int, part: NDArray[Any]) -> Any:
        return part[0] / 2


class Pooled(nn.Module):
    def __init__(self, planes: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(planes, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(images.mean((2, 3)))
        return scores


def squares(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return ((outputs[:, 0] - targets) ** 2).sum(), torch.tensor(float(targets.numel()))


class Spectrum(nn.Module):
    """Classifies by an operator that has no form on tiles."""

    def __init__(self, planes: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(planes)
        self.head = nn.Linear(planes, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.fft.fft2(self.norm(images)).abs().mean((2, 3)))
        return scores


def halving(planes: int, num_classes: int) -> nn.Module:
    """Maps of half the size."""
    return nn.Conv2d(planes, num_classes, 2, stride=2)


def _layer(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class _Float(nn.Module):
    """A block of a user's that gives float32 whatever the precision of the run."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def _flat(planes: int) -> list[nn.Module]:
    first = nn.Sequential(_layer(planes, 4), _Float())
    second = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8))
    return [first, nn.Dropout(0.3), second, nn.ReLU(inplace=True), _layer(8, 8)]


def flat(planes: int, num_classes: int) -> nn.Module:
    """A sequence of blocks that scores pixels; one has no parameters and one works in place."""
    return nn.Sequential(*_flat(planes), nn.Conv2d(8, num_classes, 1))


def flat_pooled(planes: int, num_classes: int) -> nn.Module:
    """The same for whole images."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return nn.Sequential(*_flat(planes), pool, nn.Linear(8, num_classes))


def focal(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Classes that are easy count less; divided by what counts."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    weights = 1 - (-losses).exp()
    return (losses * weights).sum(), weights.sum()
