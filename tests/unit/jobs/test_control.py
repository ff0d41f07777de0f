import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.supervise import control as control_module
from lartpc_ds.jobs.supervise.control import Control, Failure
from lartpc_ds.training.control_point import ControlPoint
from tests.rank_lines import greeted, listening, rank, wait


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    with listening(tmp_path) as made:
        yield made


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


def test_a_run_that_cannot_go_on_is_told_without_a_traceback_and_is_no_mistake_of_the_user(
    control: Control, tmp_path: Path
) -> None:
    with rank(tmp_path, 1, "line.failed(RunError('step 3: the loss is nan')); time.sleep(600)"):
        wait(lambda: control.first_failure is not None)
    assert control.first_failure == Failure("step 3: the loss is nan", by_user=False)


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


def test_the_token_is_for_the_owners_eyes(control: Control, tmp_path: Path) -> None:
    assert (tmp_path / "control.json").stat().st_mode & 0o777 == 0o600
    assert ControlPoint.read(tmp_path, "this").environment == {"GIVEN": "yes"}


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
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"1\n",
        b"[]\n",
        b'{"rank": 0}\n',
        b'{"rank": 0, "token": "\xc3\xa9"}\n',
        b"[" * 9999 + b"\n",
        b"x" * 9999,
    ],
)
def test_noise_of_any_kind_is_sent_away(control: Control, tmp_path: Path, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", ControlPoint.read(tmp_path, "this").port)) as line:
        line.sendall(noise)
        assert line.recv(1) == b""
    with greeted(tmp_path, 1):
        wait(lambda: control.living == [1])
