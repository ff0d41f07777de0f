"""Models as a user brings them by `model.target`, with the faults that a test needs."""

import os
import time

import torch
from torch import nn


class Faulty(nn.Module):
    """Pools and classifies; at its third training step it does `fault` first, if this is rank `rank`."""

    def __init__(self, planes: int, num_classes: int, rank: str, fault: str) -> None:
        super().__init__()
        self.head = nn.Linear(planes, num_classes)
        self.rank, self.fault, self.steps = rank, fault, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps == 3 and os.environ.get("RANK") == self.rank:
            if self.fault == "raise":
                raise ZeroDivisionError("the user's own mistake")
            time.sleep(600)
        scores: torch.Tensor = self.head(images.mean((2, 3)))
        return scores


class Flattens(nn.Module):
    """A linear layer on all pixels: no tile can compute its part."""

    def __init__(self, planes: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(planes * 33 * 49, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.flatten(images, 1))
        return scores


def flattens(planes: int, num_classes: int) -> nn.Module:
    return Flattens(planes, num_classes)


def raises_on_rank_1(planes: int, num_classes: int) -> nn.Module:
    return Faulty(planes, num_classes, "1", "raise")


def hangs_on_rank_0(planes: int, num_classes: int) -> nn.Module:
    return Faulty(planes, num_classes, "0", "sleep")
