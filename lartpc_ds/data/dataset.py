"""Events as torch tensors: the one module of this package that imports torch."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lartpc_ds.data.files import EventFiles
from lartpc_ds.data.images import Preprocessing, densify

__all__ = ["EventDataset"]


class EventDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Item k is (image, label, k): float32 (planes, rows, cols) of this rank's tile, int64 scalar, int64 scalar.

    `indices[k]` is the event's global index in `files`, `labels[k]` its class; `rows` and `cols` bound the tile in the
    preprocessed image, whole by default. Safe in worker processes: files open where they are read.
    """

    def __init__(
        self,
        files: EventFiles,
        pre: Preprocessing,
        indices: Sequence[int] | NDArray[np.int64],
        labels: Sequence[int] | NDArray[np.int64],
        rows: tuple[int, int] | None = None,
        cols: tuple[int, int] | None = None,
    ) -> None:
        assert len(indices) == len(labels), "one label for each event"
        self.files = files
        self.pre = pre
        self.indices: NDArray[np.int64] = np.asarray(indices, np.int64)
        self.labels: NDArray[np.int64] = np.asarray(labels, np.int64)
        self.rows = rows
        self.cols = cols

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        event = self.files.read(int(self.indices[position]))
        image = torch.from_numpy(densify(event, self.pre, self.rows, self.cols))
        return image, torch.tensor(int(self.labels[position])), torch.tensor(int(position))
