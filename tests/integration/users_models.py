"""Models as a user brings them by `model.target`, with the faults that a test needs."""

import os
import resource
import signal
import time
from pathlib import Path

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


class DiesInTrials(nn.Module):
    """On ranks, the first job is killed and the second one finds no memory; later ones, and the planner, train."""

    def __init__(self, planes: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(planes, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if "RANK" in os.environ:
            self._die_once()
        scores: torch.Tensor = self.head(images.mean((2, 3)))
        return scores

    def _die_once(self) -> None:
        for fault in ("killed", "no-memory"):
            mark = Path(os.environ["TRIAL_FAULTS"]) / fault
            if mark.exists() and mark.read_text() == str(os.getpid()):
                return  # this job had its fault
            if mark.exists():
                continue
            mark.write_text(str(os.getpid()))
            mark.with_suffix(".oom").write_text(Path("/proc/self/oom_score_adj").read_text())
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))  # less than it has: nothing more is to be had
            torch.empty(2**28).fill_(1)


def dies_in_trials(planes: int, num_classes: int) -> nn.Module:
    return DiesInTrials(planes, num_classes)
