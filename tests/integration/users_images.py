"""Images, a network and a loss as a user brings them: the neutrino among cosmic rays, pixel by pixel, in real events.

Each wire plane of each event of the SBND sample is an image of one channel, cut out around the neutrino.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing, densify

FOLDER = "LARTPC_DS_REAL_EVENTS"
CROP = (193, 251)  # no tile divides it
NEUTRINO = 2


class CosmicPixels:
    """Classes as the file has them: 0 background, 1 cosmic, 2 neutrino; pixels without charge are not counted."""

    classes = ("background", "cosmic", "neutrino")
    image_shape = (1, *CROP)

    def __init__(self) -> None:
        path = str(Path(os.environ[FOLDER]) / "sbnd_2events_larcv3.h5")
        self.wires, self.truth = (open_files([path], product=name) for name in ("sbndwire", "sbnd_cosmicseg"))
        self.pre = Preprocessing(self.wires.largest_plane)
        self.corners = [self._corner(event, plane) for event in range(2) for plane in range(3)]

    def _corner(self, event: int, plane: int) -> tuple[int, int]:
        pixels = self.truth.read(event).planes[plane]
        middle = np.median(np.divmod(pixels.ids[pixels.values == NEUTRINO], pixels.shape[1]), axis=1)
        row, col = (
            int(np.clip(at - size // 2, 0, whole - size))
            for at, size, whole in zip(middle, CROP, self.pre.shape, strict=True)
        )
        return row, col

    def __len__(self) -> int:
        return len(self.corners)

    def read(self, index: int, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[Any, NDArray[np.int8]]:
        event, plane = divmod(index, 3)
        top, left = self.corners[index]
        window = (top + rows[0], top + rows[1]), (left + cols[0], left + cols[1])
        image, truth = (
            densify(files.read(event), self.pre, *window)[plane : plane + 1] for files in (self.wires, self.truth)
        )
        target = np.where(image[0] > 0, truth[0], -1).astype(np.int8)
        # a pedestal as raw wires have it; in empty images float32 rounding is what a batch norm makes most of
        row, col = np.ogrid[slice(*rows), slice(*cols)]
        pedestal = 0.5 * np.sin(row * col)
        return (np.minimum(image / 100, 5) + pedestal).astype(np.float32), target


def rare_classes_count_more(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy with a weight a class, divided by the sum of the weights."""
    weights = torch.tensor([0.2, 1.0, 3.0], device=outputs.device)
    counted = targets >= 0
    classes = targets.clamp(min=0)
    per_pixel = weights[classes] * counted
    return (F.cross_entropy(outputs, classes, reduction="none") * per_pixel).sum(), per_pixel.sum()
