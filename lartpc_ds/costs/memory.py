"""Peak memory of a process, as one number that a user can compare with a device's size.

On CUDA the allocator knows. On CPU it is the kernel's high-water mark of resident memory (VmHWM), reset through
`/proc/self/clear_refs` and counted from a baseline after imports, so that libraries do not hide a small network.
Rejected: polling `psutil`, which misses peaks between polls.
"""

from pathlib import Path

import torch

__all__ = ["PeakMemory"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"  # proc(5)


class PeakMemory:
    """Measures bytes above the baseline that was taken when this object was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._baseline_bytes = 0
        self.reset()
        if device.type == "cpu":
            self._baseline_bytes = _status_bytes("VmRSS")

    def reset(self) -> None:
        """Start a new peak from the memory in use now."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _CLEAR_REFS.exists():
            _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)

    def peak_bytes(self) -> int:
        """The largest use since the last reset."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(0, _status_bytes("VmHWM") - self._baseline_bytes)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{_STATUS} has no {field}")
