import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from lartpc_ds.control_point import ControlPoint, message
from lartpc_ds.errors import UserError
from lartpc_ds.launch import control as control_module
from lartpc_ds.launch.control import Control, Failure
from lartpc_ds.lifeline import Lifeline

RANK = """
import sys, time
from pathlib import Path
from lartpc_ds import lifeline
from lartpc_ds.errors import UserError
from lartpc_ds.control_point import ControlPoint
from lartpc_ds.lifeline import Lifeline
stopped = []
line = Lifeline(ControlPoint.read(Path(sys.argv[1]), "this"), int(sys.argv[2]))
line.watch(lambda: stopped.append(True))
"""


@contextmanager
def rank(logs: Path, number: int, then: str = "time.sleep(600)", before: str = "") -> Iterator["subprocess.Popen[str]"]:
    script = RANK.replace("stopped = []", f"stopped = []; {before}") + textwrap.dedent(then)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(logs), str(number)], text=True, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    with listening(tmp_path) as made:
        yield made


def listening(logs: Path) -> Control:
    variables = {"GIVEN": "yes"}
    return Control(
        logs, 2, job="this", addresses=("127.0.0.1",), launcher=None, master=("127.0.0.1", 0), environment=variables
    )


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def greeted(logs: Path, number: int, token: str | None = None) -> socket.socket:
    point = ControlPoint.read(logs, "this")
    line = socket.create_connection(("127.0.0.1", point.port))
    line.sendall(message(token=token or point.token, rank=number, host="beta", pid=17))
    return line


def test_a_rank_lives_until_it_says_that_it_ends(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 1, "time.sleep(1); line.ended()") as process:
        wait(lambda: control.living == [1])
        assert control.places == {1: (socket.gethostname(), process.pid)}
        assert process.wait() == 0
        wait(lambda: control.living == [])
    time.sleep(0.5)
    assert control.first_failure is None


def test_all_ranks_tell_where_they_are(control: Control, tmp_path: Path) -> None:
    with greeted(tmp_path, 0), greeted(tmp_path, 1):
        wait(lambda: len(control.places) == 2)
    control.write_places()
    assert json.loads((tmp_path / "ranks.json").read_text())["1"] == {"host": "beta", "pid": 17}


def test_a_killed_rank_is_the_cause_even_if_an_error_came_first(control: Control, tmp_path: Path) -> None:
    error = "line.failed(ConnectionError('closed by peer')); time.sleep(600)"
    with rank(tmp_path, 0, error), rank(tmp_path, 1) as victim:
        wait(lambda: control.first_failure is not None and control.living == [1])
        victim.send_signal(signal.SIGKILL)
        wait(lambda: control.living == [])
    found = control.first_failure
    assert found is not None and not found.by_user
    assert f"rank 1 (process {victim.pid} on {socket.gethostname()}) was killed" in found.report
    assert str(tmp_path / "rank1.log") in found.report


def test_the_earliest_error_is_shown_with_its_traceback(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 1, "line.failed(RuntimeError('the cause')); time.sleep(600)"):
        wait(lambda: control.first_failure is not None)
        with rank(tmp_path, 0, "line.failed(RuntimeError('an echo')); time.sleep(600)"):
            wait(lambda: len(control.places) == 2 and control.living == [])
    found = control.first_failure
    assert found is not None and not found.by_user
    assert "RuntimeError: the cause" in found.report and "rank 1 failed first" in found.report
    assert "an echo" not in found.report


def test_of_a_users_mistake_only_the_message_is_shown(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 1, "line.failed(UserError('event 7 of a.h5 is broken')); time.sleep(600)"):
        wait(lambda: control.first_failure is not None)
    assert control.first_failure == Failure("event 7 of a.h5 is broken", by_user=True)


def test_a_subclass_of_value_error_is_our_bug(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 1, "line.failed(ValueError('shapes')); time.sleep(600)"):
        wait(lambda: control.first_failure is not None)
    assert control.first_failure is not None and not control.first_failure.by_user


def test_a_stop_request_reaches_ranks_that_connect_later_too(control: Control, tmp_path: Path) -> None:
    waits = """
    while not stopped:
        time.sleep(0.05)
    print("stopped", flush=True)
    line.ended()
    """
    with rank(tmp_path, 0, waits) as early:
        wait(lambda: control.living == [0])
        control.stop()
        with rank(tmp_path, 1, waits) as late:
            for process in (early, late):
                assert process.communicate(timeout=30)[0] == "stopped\n" and process.returncode == 0
    assert control.first_failure is None


def test_ranks_end_when_the_command_line_closes(tmp_path: Path) -> None:
    with listening(tmp_path) as control, rank(tmp_path, 0) as one, rank(tmp_path, 1) as other:
        wait(lambda: control.living == [0, 1])
        started = time.monotonic()
        assert control.close() == []
        assert time.monotonic() - started < 5
        assert (one.wait(timeout=5), other.wait(timeout=5)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert control.first_failure is None  # it was us
    assert not (tmp_path / "control.json").exists()


def test_what_cannot_be_told_to_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "_GOODBYE_SECONDS", 0.2)
    with listening(tmp_path) as control, greeted(tmp_path, 1):
        wait(lambda: control.living == [1])
        assert control.close() == ["rank 1 on beta"]


def test_silence_is_a_lost_rank(control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "SILENCE_SECONDS", 2.0)
    with greeted(tmp_path, 1):
        wait(lambda: control.living == [1])
        wait(lambda: control.living == [])
    found = control.first_failure
    assert found is not None and "rank 1 (process 17 on beta) has given no sign of life for 2 s" in found.report


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


@pytest.mark.parametrize("token", ["guessed", ""])
def test_strangers_are_sent_away(control: Control, tmp_path: Path, token: str) -> None:
    with greeted(tmp_path, 1, token or "0") as line:
        assert line.recv(1) == b""
    assert control.places == {} and control.first_failure is None


@pytest.mark.parametrize("number", [2, -1, 0])
def test_a_rank_is_one_of_the_job_and_comes_once(control: Control, tmp_path: Path, number: int) -> None:
    with greeted(tmp_path, 0):
        wait(lambda: control.living == [0])
        with greeted(tmp_path, number) as line:
            assert line.recv(1) == b""
        assert control.living == [0]


def test_noise_does_not_disturb(control: Control, tmp_path: Path) -> None:
    point = ControlPoint.read(tmp_path, "this")
    with socket.create_connection(("127.0.0.1", point.port)) as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert line.recv(1) == b""
    with greeted(tmp_path, 1):
        wait(lambda: control.living == [1])


def test_the_token_is_for_the_owners_eyes(control: Control, tmp_path: Path) -> None:
    assert (tmp_path / "control.json").stat().st_mode & 0o777 == 0o600
    assert ControlPoint.read(tmp_path, "this").environment == {"GIVEN": "yes"}


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    point = ControlPoint(("127.0.0.1", "127.0.0.2"), port, "this", "x", None, "", 0, {})
    with pytest.raises(UserError, match=rf"rank 3 on .*port {port} of 127\.0\.0\.1: .*; 127\.0\.0\.2: .*firewall"):
        Lifeline(point, 3)


def test_a_late_rank_of_a_job_that_has_ended_does_not_start(control: Control, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the command line of job earlier is gone"):
        ControlPoint.read(tmp_path, "earlier")
    control.close()
    with pytest.raises(UserError, match=r"the command line of job this is gone"):
        ControlPoint.read(tmp_path, "this")


def test_the_job_is_complete_when_all_ranks_say_so(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 0, "line.ended(complete=True)"), rank(tmp_path, 1, "time.sleep(1); line.ended()"):
        wait(lambda: len(control.places) == 2 and control.living == [])
        assert not control.complete


def test_a_rank_that_is_asked_to_stop_by_somebody_else_tells(control: Control, tmp_path: Path) -> None:
    with rank(tmp_path, 0, "line.stopping(); time.sleep(600)"):
        wait(lambda: control.asked_to_stop)
        assert control.living == [0]


@pytest.mark.parametrize(
    "noise",
    [b"1\n", b"[]\n", b'{"rank": 0}\n', b'{"rank": 0, "token": "\xc3\xa9"}\n', b"[" * 9999 + b"\n", b"x" * 9999],
)
def test_noise_of_any_kind_is_sent_away(control: Control, tmp_path: Path, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", ControlPoint.read(tmp_path, "this").port)) as line:
        line.sendall(noise)
        assert line.recv(1) == b""
    with greeted(tmp_path, 1):
        wait(lambda: control.living == [1])


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
