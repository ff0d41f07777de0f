import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.cli import wait_until
from tests.integration.hosts import Host, cluster, require, reset, send_signal

pytestmark = pytest.mark.hosts

NOW = "import time; print(time.time())"
SLEEP = ["sleep", "1000"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    with cluster(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture
def hosts(made: dict[str, Host]) -> Iterator[dict[str, Host]]:
    yield made
    reset(made)


def assert_each_reaches_each(hosts: dict[str, Host]) -> None:
    for here in hosts.values():
        for there in hosts:
            assert here.check("ssh", "-o", "BatchMode=yes", there, "hostname") == f"{there}\n"


def test_each_host_reaches_each_by_name_without_a_prompt(tmp_path: Path) -> None:
    names = ("alpha", "beta", "gamma", "delta")
    with cluster(tmp_path, names) as hosts:
        assert_each_reaches_each(hosts)
        shown = hosts["gamma"].check("pdsh", "-R", "ssh", "-w", ",".join(names), "hostname")
        assert sorted(shown.splitlines()) == sorted(f"{name}: {name}" for name in names)


def test_a_reset_takes_back_what_a_test_did(hosts: dict[str, Host], tmp_path: Path) -> None:
    alpha, beta = hosts.values()
    (tmp_path / "empty").mkdir()
    (alpha.folder / "known_hosts").write_text("")
    (beta.folder / "authorized_keys").write_text("")
    beta.bind(tmp_path / "empty", Path(sys.executable).parent)
    beta.check("ip", "route", "add", "unreachable", "10.77.0.3")
    beta.faketime(300)
    beta.stop_sshd()
    beta.link("down")
    with beta.started(SLEEP) as left:
        wait_until(lambda: bool(beta.processes("sleep")), "sleep on beta")
        reset(hosts)
        assert left.wait(timeout=30) == -signal.SIGKILL
    assert not any(host.processes() for host in hosts.values())
    assert_each_reaches_each(hosts)
    assert abs(float(alpha.check("ssh", "beta", f"{sys.executable} -c '{NOW}'")) - time.time()) < 30
    assert beta.check("ip", "route") == alpha.check("ip", "route").replace(alpha.address, beta.address)


def test_mpi_starts_a_process_on_each_host(hosts: dict[str, Host]) -> None:
    shown = hosts["alpha"].check(
        "mpirun",
        "-n",
        "2",
        "--host",
        "alpha,beta",
        "--allow-run-as-root",
        "--mca",
        "btl_tcp_if_include",
        "eth0",
        "hostname",
    )
    assert sorted(shown.split()) == ["alpha", "beta"]


def test_an_unknown_name_and_a_strange_key_are_refused_at_once(hosts: dict[str, Host]) -> None:
    unknown = hosts["alpha"].run(["ssh", "omega", "true"], timeout_seconds=10)
    assert unknown.code == 255 and "Could not resolve hostname omega" in unknown.err
    known = hosts["alpha"].folder / "known_hosts"
    known.write_text("".join(line for line in known.read_text().splitlines(True) if not line.startswith("beta")))
    stranger = hosts["alpha"].run(["ssh", "-o", "BatchMode=yes", "beta", "true"])
    assert stranger.code == 255 and "Host key verification failed" in stranger.err


def test_a_host_sees_and_kills_its_own_processes_only(hosts: dict[str, Host]) -> None:
    alpha, beta = hosts.values()
    with alpha.started(SLEEP) as here, beta.started(SLEEP):
        wait_until(lambda: all(host.processes("sleep") for host in hosts.values()), "both sleeps")
        assert "sshd: " in beta.check("ps", "ax") and "pytest" not in beta.check("ps", "ax", "-o", "comm")
        assert alpha.run(["pkill", "-f", "sleep 1000"]).code == 0
        assert here.wait() == -signal.SIGTERM
        assert not alpha.processes() and len(beta.processes()) == 1
    assert not beta.processes()


def test_a_signal_and_an_exit_code_pass_the_border(hosts: dict[str, Host]) -> None:
    trap = "trap 'echo caught; exit 75' USR1; echo ready; while :; do sleep 0.1; done"
    with hosts["alpha"].started(["bash", "-c", trap]) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        send_signal(process, signal.SIGUSR1)
        assert process.communicate() == ("caught\n", "") and process.returncode == 75


def test_a_command_that_hangs_is_killed_with_its_children(hosts: dict[str, Host]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        hosts["alpha"].run(["bash", "-c", "sleep 1000 & wait"], timeout_seconds=1)
    assert not hosts["alpha"].processes()


def test_a_folder_may_be_of_one_host_only(hosts: dict[str, Host], tmp_path: Path) -> None:
    alpha, beta = hosts.values()
    for folder in ("data", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(folder)
    beta.bind(tmp_path / "other", tmp_path / "data")
    file = str(tmp_path / "data" / "name")
    assert alpha.check("ssh", "beta", "cat", file) == beta.run(["cat", "name"], cwd=tmp_path / "data").out == "other"
    assert alpha.check("cat", file) == Path(file).read_text() == "data"


def test_a_link_goes_down_and_up(hosts: dict[str, Host]) -> None:
    alpha, beta = hosts.values()
    ssh = ["ssh", "-o", "ConnectTimeout=2", "beta", "true"]
    beta.link("down")
    assert alpha.run(ssh).code == 255
    beta.link("up")
    assert alpha.run(ssh).code == 0


def test_sshd_stops_with_or_without_its_sessions(hosts: dict[str, Host]) -> None:
    alpha, beta = hosts.values()
    with alpha.started(["ssh", "beta", *SLEEP]) as session:
        wait_until(lambda: bool(beta.processes("sleep")), "sleep on beta")
        beta.stop_sshd()
        refused = alpha.run(["ssh", "beta", "true"])
        assert refused.code == 255 and "Connection refused" in refused.err
        assert session.poll() is None
        beta.stop_sshd(sessions_too=True)
        assert session.wait(timeout=30) == 255
        assert beta.processes("sleep") and not beta.services("sshd")
    beta.start_sshd()
    alpha.check("ssh", "beta", "true")


def test_a_clock_is_off_through_ssh(hosts: dict[str, Host]) -> None:
    alpha, beta = hosts.values()

    def off_seconds() -> float:
        return float(alpha.check("ssh", "beta", f"{sys.executable} -c '{NOW}'")) - time.time()

    assert abs(off_seconds()) < 30
    beta.faketime(300)
    assert 270 < off_seconds() < 330
    assert abs(float(alpha.check("ssh", "alpha", f"{sys.executable} -c '{NOW}'")) - time.time()) < 30
    beta.faketime(0)
    assert abs(off_seconds()) < 30


def test_nothing_is_left_on_the_machine(tmp_path: Path) -> None:
    before = traces()
    with cluster(tmp_path) as hosts:
        namespaces = {os.readlink(f"/proc/{host.init}/ns/{kind}") for host in hosts.values() for kind in ("net", "mnt")}
        assert len(namespaces) == 4
        assert traces() == before  # while it stands, too
        with hosts["alpha"].started(["ssh", "beta", "setsid sleep 1000 & sleep 1000"]):
            wait_until(lambda: len(hosts["beta"].processes("sleep")) >= 2, "two sleeps on beta")
    assert_gone(namespaces)
    assert traces() == before


def test_nothing_is_left_of_a_killed_test(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.integration.hosts import cluster\n"
        "with cluster(Path(sys.argv[1])) as hosts:\n"
        "    print(*(host.init for host in hosts.values()), flush=True)\n"
        "    time.sleep(1000)\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        inits = process.stdout.readline().split()
        namespaces = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in inits for kind in ("net", "mnt")}
        assert len(namespaces) == 4
        process.kill()
    assert_gone(namespaces)


def traces() -> tuple[str, str, str, list[Path]]:
    """What a careless cluster would leave: interfaces, named networks, mounts, keys of the user."""
    interfaces = subprocess.run(["ip", "-brief", "link"], check=True, capture_output=True, text=True).stdout
    networks = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return interfaces, networks, Path("/proc/self/mounts").read_text(), sorted(Path.home().glob(".ssh/*"))


def assert_gone(namespaces: set[str]) -> None:
    """No process holds one of them, so the kernel has dropped their mounts and interfaces."""
    wait_until(lambda: not any(namespaces & held(pid) for pid in psutil.pids()), "the end of the hosts", 30)


def held(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt")}
    except OSError:
        return set()


def test_what_is_missing_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"packages one two; missing commands: no-such-command$"):
        require(["ip", "no-such-command"], "one two")
