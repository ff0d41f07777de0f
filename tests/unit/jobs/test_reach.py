import signal
import sys
import time
from collections.abc import Sequence

import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.faults import fault_of
from lartpc_ds.jobs.hosts.reach import Outcome, Srun, Ssh, reach_for, run_python


class Shell:
    """A stand-in for ssh: runs a shell command here instead."""

    name = "ssh"

    def __init__(self, text: str) -> None:
        self.text = text

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        return ["sh", "-c", self.text, host, *remote]


def outcome(err: str, code: int = 255, *, lines: Sequence[str] = (), timed_out: bool = False) -> Outcome:
    return Outcome(code, 0.0, tuple((1.0, line) for line in lines), err, timed_out)


def test_ssh_asks_nothing_and_quotes_for_the_remote_shell() -> None:
    command = Ssh().command("beta", ["/opt/my env/bin/python", "-I", "-"])
    assert command[0] == "ssh" and command[-2:] == ["beta", "'/opt/my env/bin/python' -I -"]
    assert "BatchMode=yes" in command and "ConnectTimeout=10" in command
    assert not any("StrictHostKeyChecking" in part for part in command)


def test_srun_makes_a_step_of_one_task_on_the_host() -> None:
    command = Srun().command("beta", ["python", "-"])
    assert {"--overlap", "--nodes=1", "--ntasks=1", "--nodelist=beta"} < set(command)
    assert command[0] == "srun" and command[-2:] == ["python", "-"]


def test_the_way_follows_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert reach_for("pdsh", {}) == reach_for("openmpi", {}) == Ssh()
    assert reach_for("slurm", {"SLURM_JOB_ID": "7"}) == Srun()
    with pytest.raises(UserError, match="salloc"):
        reach_for("slurm", {})
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs ssh, which is not on"):
        reach_for("pdsh", {})


CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
Offending ED25519 key in /home/u/.ssh/known_hosts:3
Host key verification failed."""


@pytest.mark.parametrize(
    ("said", "check", "message", "fix"),
    [
        ("ssh: connect to host beta port 22: Connection refused", "ssh", "no sshd listens", "systemctl start ssh"),
        ("ssh: connect to host beta port 22: Connection timed out", "ssh", "is down", "ping beta"),
        ("Connection timed out during banner exchange", "ssh", "is down", "--exclude beta"),
        ("ssh: connect to host beta port 22: No route to host", "ssh", "no route to host", "ping beta"),
        (
            "ssh: connect to host beta port 22: Network is unreachable",
            "ssh",
            "no network that leads",
            "ip route get beta",
        ),
        ("Host key verification failed.", "ssh", "not known here", "run ssh beta once"),
        (CHANGED, "ssh", "differs from the one in known_hosts", "ssh-keygen -R beta"),
        ("u@beta: Permission denied (publickey,password).", "ssh", "no key of yours", "ssh-copy-id beta"),
        ("ssh: Could not resolve hostname beta: Name or service not known", "name", "cannot resolve", "/etc/hosts"),
        ("kex_exchange_identification: Connection closed by remote host", "ssh", "sshd closes", "MaxStartups"),
        ("srun: error: Unable to create step: Requested node configuration is not available", "srun", "not in", "make"),
    ],
)
def test_each_failure_of_ssh_has_its_own_cure(said: str, check: str, message: str, fix: str) -> None:
    fault = fault_of(Ssh(), "beta", outcome(f"Warning: something\n{said}\n"))
    assert fault.check == check and message in fault.message and fix in fault.fix


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (127, "bash: line 1: /opt/env/bin/python: No such file or directory"),
        (126, "bash: /opt/env/bin/python: Permission denied"),
        (2, "slurmstepd: error: execve(): /opt/env/bin/python: No such file or directory"),
    ],
)
def test_a_missing_python_is_no_matter_of_ssh(code: int, said: str) -> None:
    fault = fault_of(Ssh(), "beta", outcome(said, code))
    assert fault.check == "python" and sys.executable in fault.message


def test_what_is_not_known_is_quoted() -> None:
    fault = fault_of(Ssh(), "beta", outcome("first\nBad configuration option: foo\n\n"))
    assert "255: Bad configuration option: foo" in fault.message and "beta hostname" in fault.fix
    silent = fault_of(Ssh(), "beta", outcome("", -9, timed_out=True))
    assert "never answered" in silent.message


def test_a_script_runs_and_its_lines_have_times() -> None:
    before = time.time()
    done = run_python(Shell('exec "$@"'), "beta", "import time\nprint('{\"a\": 1}', flush=True)\n", 30)
    assert (done.code, done.timed_out) == (0, False)
    assert [value for _, value in done.answers()] == [{"a": 1}]
    assert before <= done.started <= done.lines[0][0] <= time.time()


def test_a_login_shell_may_print_what_it_likes() -> None:
    done = run_python(Shell('echo "Welcome!"; echo 7; exec "$@"'), "beta", "print('{\"a\": 1}')", 30)
    assert len(done.lines) == 3 and [value for _, value in done.answers()] == [{"a": 1}]


def test_a_client_that_ends_at_once_is_no_broken_pipe() -> None:
    done = run_python(Shell("echo 'Connection refused' >&2; exit 255"), "beta", "#" * 10**6, 30)
    assert done.code == 255 and done.answers() == [] and "refused" in done.err


def test_a_silent_host_costs_the_time_limit_and_no_more() -> None:
    started = time.monotonic()
    done = run_python(Shell("exec sleep 60"), "beta", "", 0.5)
    assert done.timed_out and done.code == -signal.SIGKILL and time.monotonic() - started < 30


def test_what_runs_there_ends_by_itself() -> None:
    done = run_python(Shell('exec "$@"'), "beta", "print(signal.alarm(0))", 30)
    assert done.lines[0][1] == "31"
