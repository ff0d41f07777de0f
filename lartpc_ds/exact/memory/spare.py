"""Micro-batches whose maps would not fit in memory run their blocks once more instead of keeping them.

What a step on patches keeps depends on its events, and the brightest event of a run may need ten times what the median
event needs. Recomputation gives the same numbers, so a rank may choose it for one micro-batch and not for the next: it
compares what the micro-batch would keep with the memory that is free now. Rejected: a second try after an allocation
has failed, because on a CPU none fails before the kernel ends the process.
"""

import os

import psutil
import torch

from lartpc_ds.exact.kernels.host_memory import CONTAINER_USE, container_limit_bytes

__all__ = ["Spare", "free_bytes"]

_MARGIN = 1.5
"""What a step needs, relative to the maps that it keeps: gradients of maps and the scratch of kernels come on top."""


class Spare:
    """Whether the maps of the micro-batch at hand fit in the memory of the device."""

    fits = True

    def look(self, kept_bytes: float, device: torch.device) -> None:
        """Compare what a micro-batch would keep with what is free."""
        self.fits = kept_bytes * _MARGIN <= free_bytes(device)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a rank may still take; ranks of a host share its memory evenly, in a container its limit.

    On CUDA this counts what torch's allocator holds and has not given out.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    free = int(psutil.virtual_memory().available)
    if (limit := container_limit_bytes()) is not None:
        free = min(free, limit - int(CONTAINER_USE.read_text()))
    return free // int(os.environ.get("LOCAL_SIZE", 1))
