"""A killed process leaves no helper behind, and none of their semaphores."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lartpc_ds.data.processes import kill_all, lives

POOL = """
import time
from lartpc_ds.data.processes import map_in_processes
if __name__ == "__main__":
    list(map_in_processes(time.sleep, [600, 600], 2))
"""
READERS = """
import time
from torch.utils.data import DataLoader
from lartpc_ds.training.readers import reader_context
from lartpc_ds.data.processes import end_with_parent
if __name__ == "__main__":
    context = reader_context()
    for _ in DataLoader(range(9), num_workers=2, multiprocessing_context=context, worker_init_fn=end_with_parent):
        time.sleep(600)
"""
HELPERS = 4  # a resource tracker, a fork server and two workers


@pytest.mark.parametrize("script", [POOL, READERS], ids=["pool", "readers"])
def test_helpers_of_a_killed_process_end_and_leave_no_semaphore(script: str) -> None:
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        try:
            killed = psutil.Process(process.pid)
            wait_until(lambda: len(killed.children(recursive=True)) == HELPERS)
            time.sleep(1)  # for the last one to have its initializer behind it
            helpers = killed.children(recursive=True)
            semaphores = named_semaphores(process.pid)
            assert semaphores
        finally:
            process.kill()
    try:
        wait_until(lambda: not any(map(lives, helpers)))
    finally:
        kill_all(helpers)
    wait_until(lambda: not any(path.exists() for path in semaphores))


def named_semaphores(pid: int) -> set[Path]:
    """Those that a process has in its memory."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[5]) for line in lines if "/dev/shm/sem." in line}


def wait_until(condition) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_killed_leaves_no_semaphore() -> None:
    with subprocess.Popen([sys.executable, "-c", POOL]) as process:
        killed = psutil.Process(process.pid)
        wait_until(lambda: len(killed.children(recursive=True)) == HELPERS)
        family = [killed, *killed.children(recursive=True)]
        wait_until(lambda: named_semaphores(process.pid))
        semaphores = named_semaphores(process.pid)
        kill_all(family)
    assert not any(map(lives, family))
    assert [path for path in semaphores if path.exists()] == []
