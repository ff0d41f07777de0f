import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.supervise import control as control_module
from lartpc_ds.jobs.supervise.control import Control
from lartpc_ds.training.control_point import ControlPoint
from lartpc_ds.training.lifeline import Lifeline
from tests.rank_lines import RANK, listening, rank, wait


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    with listening(tmp_path) as made:
        yield made


def test_silence_of_the_command_line_ends_a_rank_even_one_that_holds_its_interpreter(tmp_path: Path) -> None:
    busy = "import ctypes; ctypes.PyDLL(None).sleep(600)"  # the interpreter's lock is not given up
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ControlPoint(("127.0.0.1",), mute.getsockname()[1], "this", "x", None, "", 0, {}).write(tmp_path)
        with rank(tmp_path, 0, busy, before="lifeline.SILENCE_SECONDS = 2.0") as process:
            assert process.wait(timeout=60) == -signal.SIGKILL


def test_a_rank_that_holds_its_interpreter_is_alive(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "SILENCE_SECONDS", 3.0)
    with rank(tmp_path, 0, "import ctypes; ctypes.PyDLL(None).sleep(600)") as process:
        wait(lambda: control.living == [0])
        time.sleep(5)
        assert control.living == [0] and control.first_failure is None
        process.kill()
        wait(lambda: control.living == [])
    assert control.first_failure is not None and "was killed" in control.first_failure.report


def guard_of(process: "subprocess.Popen[str]") -> psutil.Process:
    """It is forked after the rank has greeted, and then hears signals for a moment: until it says so itself."""
    found = psutil.Process(process.pid)
    wait(found.children)
    (guard,) = found.children()
    wait(lambda: ignores_stop_requests(guard))
    return guard


def ignores_stop_requests(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    (ignored,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    return all(ignored >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def test_a_guard_outlives_no_rank_and_no_rank_its_guard(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 0) as process:
        guard = guard_of(process)
        wait(lambda: control.living == [0])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            guard.send_signal(number)  # as a batch system does, to every process
        time.sleep(0.5)
        assert guard.is_running() and guard.status() != psutil.STATUS_ZOMBIE
        assert process.poll() is None and control.living == [0] and control.first_failure is None
        process.kill()
        guard.wait(timeout=10)
    with rank(tmp_path, 1) as process:
        guard = guard_of(process)
        wait(lambda: control.living == [1])
        guard.kill()
        assert process.wait(timeout=10) == 1


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    point = ControlPoint(("127.0.0.1", "127.0.0.2"), port, "this", "x", None, "", 0, {})
    with pytest.raises(UserError, match=rf"rank 3 on .*port {port} of 127\.0\.0\.1: .*; 127\.0\.0\.2: .*firewall"):
        Lifeline(point, 3)


@pytest.mark.parametrize(("stopping", "survives"), [(False, False), (True, True)])
def test_a_rank_whose_launcher_has_gone_ends_unless_it_is_stopping(
    control: Control, tmp_path: Path, stopping: bool, survives: bool
) -> None:
    told = "line.stopping(); " if stopping else ""
    script = f"{RANK}Path(sys.argv[1], 'ready').touch(); {told}time.sleep(5); print('alive', flush=True)"
    launcher = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
while not Path(sys.argv[2], "ready").exists():
    time.sleep(0.05)
"""
    command = [sys.executable, "-c", launcher, script, str(tmp_path), "0"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)  # its pipe is the rank's as well
    assert finished.stdout == ("alive\n" if survives else ""), finished.stderr
    wait(lambda: control.living == [])
