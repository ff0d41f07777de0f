import numpy as np
import torch

from lartpc_ds.costs.memory import PeakMemory

ALLOCATION_BYTES = 200_000_000


def allocate_and_free() -> None:
    block = np.ones(ALLOCATION_BYTES, np.uint8)  # ones: zeros would touch no page
    del block


def test_the_peak_sees_memory_that_was_freed() -> None:
    memory = PeakMemory(torch.device("cpu"))
    allocate_and_free()
    assert abs(memory.peak_bytes() - ALLOCATION_BYTES) < 0.2 * ALLOCATION_BYTES


def test_a_reset_forgets_the_peak_but_keeps_the_baseline() -> None:
    memory = PeakMemory(torch.device("cpu"))
    allocate_and_free()
    memory.reset()
    assert memory.peak_bytes() < 0.2 * ALLOCATION_BYTES
    kept = np.ones(ALLOCATION_BYTES, np.uint8)
    memory.reset()
    assert abs(memory.peak_bytes() - ALLOCATION_BYTES) < 0.2 * ALLOCATION_BYTES, "what is in use counts after a reset"
    del kept


def test_what_was_there_before_does_not_count() -> None:
    kept = np.ones(ALLOCATION_BYTES, np.uint8)
    memory = PeakMemory(torch.device("cpu"))
    assert 0 <= memory.peak_bytes() < 0.2 * ALLOCATION_BYTES
    del kept
    memory.reset()
    assert memory.peak_bytes() >= 0
