"""The wire planes as towers of shared weights, joined late.

A wire plane is one projection of the event, so a pixel of one plane has only its tick in common with the same pixel of
another plane. Planes that are stacked as channels mix in the first convolution; towers mix after the global pool. The
towers are one trunk with the planes folded into the batch, so that the network stays a flat sequence of blocks.
Rejected: a loop over planes, which would hide that sequence.
"""

from torch import Tensor, nn

__all__ = ["FoldPlanes", "JoinPlanes", "tower_blocks"]


class FoldPlanes(nn.Module):
    """Folds planes into the batch, side by side: (N, planes, H, W) -> (N * planes, 1, H, W).

    The result has channels-last strides. With one channel these cannot be told from contiguous strides later, and torch
    would continue in the slower layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the class."""
        events, planes, wires, ticks = x.shape
        return x.reshape(events * planes, wires, ticks, 1).permute(0, 3, 1, 2)


class JoinPlanes(nn.Module):
    """Joins pooled features, in the order of the planes: (N * planes, C, 1, 1) -> (N, planes * C)."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the class."""
        return x.reshape(-1, self.planes * x.shape[1])


def tower_blocks(trunk: dict[str, nn.Module], channels: int, planes: int, num_classes: int) -> dict[str, nn.Module]:
    """The blocks of a network of towers: a block that folds the planes, the trunk, and a head that joins the planes."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), JoinPlanes(planes), nn.Linear(planes * channels, num_classes))
    return {"fold": FoldPlanes(), **trunk, "head": head}
