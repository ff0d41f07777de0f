import os
import signal
import subprocess
import sys

import psutil
import pytest

from lartpc_ds.data.processes import map_in_processes
from lartpc_ds.errors import UserError

SLEEPERS = """
import sys, time
from lartpc_ds.data.processes import map_in_processes
if __name__ == "__main__":
    for done in map_in_processes(time.sleep, [0.01, 0.01] + [600.0] * 4, 2):
        print("done", flush=True)
"""


def square(number: int) -> int:
    if number == 7:
        raise UserError("seven")
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_as_they_are(workers):
    assert list(map_in_processes(square, range(6), workers)) == [0, 1, 4, 9, 16, 25]
    with pytest.raises(UserError, match="seven"):
        list(map_in_processes(square, range(9), workers))


def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "sleepers.py")], stdout=subprocess.PIPE)
    family: list[psutil.Process] = []
    try:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == [b"done\n"] * 2
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) >= 4, "two workers, the fork server and the resource tracker"
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    assert not alive, f"{len(alive)} processes outlive the one that started them"
