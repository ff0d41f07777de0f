"""The wire planes as towers of shared weights, joined late.

A wire plane is one projection of the event: a pixel of one plane has only its tick in common with the same pixel of
another. Stacking planes as channels mixes them in the first convolution; towers mix them after the global pool. The
towers are one trunk with the planes folded into the batch, so that the network stays a flat sequence of blocks; a
loop over planes would hide that.
"""

from torch import Tensor, nn

__all__ = ["FoldPlanes", "JoinPlanes", "tower_blocks"]


class FoldPlanes(nn.Module):
    """(N, planes, H, W) -> (N * planes, 1, H, W), the planes of an event side by side.

    The result has channels-last strides: with one channel they cannot be told from contiguous ones later, and torch
    would go on in the slower layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the class."""
        events, planes, wires, ticks = x.shape
        return x.reshape(events * planes, wires, ticks, 1).permute(0, 3, 1, 2)


class JoinPlanes(nn.Module):
    """Pooled features (N * planes, C, 1, 1) -> (N, planes * C), in the order of the planes."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the class."""
        return x.reshape(-1, self.planes * x.shape[1])


def tower_blocks(trunk: dict[str, nn.Module], channels: int, planes: int, num_classes: int) -> dict[str, nn.Module]:
    """The trunk of a one-plane network between a folding first and a joining last block."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), JoinPlanes(planes), nn.Linear(planes * channels, num_classes))
    return {"fold": FoldPlanes(), **trunk, "head": head}
