import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lartpc_ds import failures
from lartpc_ds.errors import UserError


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    failures.clear(tmp_path)
    return tmp_path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def zombie_pid() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # ends with the process, which nobody has waited for yet
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


def fail(logs: Path, rank: int, error: Exception) -> None:
    try:
        raise error
    except type(error) as caught:
        failures.record_failure(logs, rank, caught)


def test_all_is_well(logs: Path) -> None:
    assert failures.first_failure(logs) is None
    with failures.alive(logs, 0):
        assert not failures.record_lost_ranks(logs)
    assert not failures.record_lost_ranks(logs)
    assert failures.first_failure(logs) is None


def test_a_pid_file_lives_as_long_as_its_rank(logs: Path) -> None:
    with failures.alive(logs, 3), failures.alive(logs, 12):
        assert failures.rank_pids(logs) == {3: os.getpid(), 12: os.getpid()}
    assert failures.rank_pids(logs) == {}


def test_a_rank_that_raises_takes_its_pid_file_along(logs: Path) -> None:
    with pytest.raises(RuntimeError), failures.alive(logs, 0):
        raise RuntimeError
    assert failures.rank_pids(logs) == {}


def test_the_earliest_failure_is_the_first(logs: Path) -> None:
    fail(logs, 2, RuntimeError("the cause"))
    fail(logs, 0, RuntimeError("connection closed by peer"))
    assert failures.record_lost_ranks(logs)
    found = failures.first_failure(logs)
    assert found is not None and not found.by_user
    assert "Traceback" in found.report and "RuntimeError: the cause" in found.report
    assert "rank 2 failed first" in found.report and str(logs) in found.report
    assert "connection closed" not in found.report


def test_of_a_users_mistake_only_the_message_is_shown(logs: Path) -> None:
    fail(logs, 1, UserError("data.files: event 7 of a.h5 is broken"))
    assert failures.first_failure(logs) == failures.Failure("data.files: event 7 of a.h5 is broken", by_user=True)


def test_a_subclass_of_value_error_is_our_bug(logs: Path) -> None:
    fail(logs, 0, ValueError("shapes"))
    found = failures.first_failure(logs)
    assert found is not None and not found.by_user and "Traceback" in found.report


def test_a_killed_rank_comes_before_its_echoes(logs: Path, dead_pid: int) -> None:
    fail(logs, 0, RuntimeError("connection closed by peer"))
    (logs / "rank1.pid").write_text(str(dead_pid))
    assert failures.record_lost_ranks(logs)
    found = failures.first_failure(logs)
    assert found is not None and not found.by_user
    assert f"rank 1 (process {dead_pid}) was killed" in found.report and f"{logs}/rank1.log" in found.report
    assert "connection closed" not in found.report


def test_a_zombie_is_dead(logs: Path, zombie_pid: int) -> None:
    (logs / "rank0.pid").write_text(str(zombie_pid))
    assert failures.record_lost_ranks(logs)


def test_a_rank_that_lives_is_not_lost(logs: Path) -> None:
    (logs / "rank0.pid").write_text(str(os.getpid()))
    assert not failures.record_lost_ranks(logs)
    assert failures.first_failure(logs) is None


def test_a_failure_that_a_rank_wrote_is_not_replaced_by_its_loss(logs: Path, dead_pid: int) -> None:
    fail(logs, 0, UserError("mine"))
    (logs / "rank0.pid").write_text(str(dead_pid))
    assert failures.record_lost_ranks(logs)
    assert failures.first_failure(logs) == failures.Failure("mine", by_user=True)


def test_a_new_job_forgets_the_old_one(logs: Path, dead_pid: int) -> None:
    fail(logs, 0, RuntimeError("old"))
    (logs / "rank1.pid").write_text(str(dead_pid))
    (logs / "rank0.log").write_text("kept")
    failures.clear(logs)
    assert failures.first_failure(logs) is None and failures.rank_pids(logs) == {}
    assert (logs / "rank0.log").read_text() == "kept"
