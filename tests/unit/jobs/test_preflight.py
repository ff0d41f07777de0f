import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import lartpc_ds
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.faults import Fault
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.preflight.hostfile_check import check
from lartpc_ds.jobs.preflight.preflight import CheckedHost, Findings, Need, preflight
from lartpc_ds.jobs.preflight.preflight_checks import Report
from lartpc_ds.jobs.preflight.preflight_report import explain, print_findings
from tests.unit.jobs.test_preflight_checks import answer
from tests.unit.jobs.test_reach import Shell

HERE = Shell('exec "$@"')
LOCALHOST = Host("localhost", (0,))


@pytest.fixture
def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(lartpc_ds.__file__).parents[1]), "DS_ACCELERATOR": "cpu"}


class Refused:
    """Hosts without a sshd."""

    name = "ssh"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        return ["sh", "-c", f"echo 'ssh: connect to host {host} port 22: Connection refused' >&2; exit 255"]


@pytest.mark.slow
def test_a_host_that_is_well(tmp_path: Path, environment: dict[str, str]) -> None:
    data = tmp_path / "a.h5"
    data.touch()
    found = preflight([LOCALHOST], HERE, Need((str(data),), tmp_path, environment))
    assert found.ok and found.faults == ()
    assert found.master_addr == "127.0.0.1" and found.master_port and "127.0.0.1" in found.addresses
    assert found.hosts[0].interface == "lo" and found.hosts[0].speed is None
    assert list(tmp_path.iterdir()) == [data]


def test_what_is_wrong_here_is_told_of_this_machine(tmp_path: Path, environment: dict[str, str]) -> None:
    found = preflight([LOCALHOST], Refused(), Need((str(tmp_path / "no.h5"),), tmp_path, environment))
    assert [(each.host, each.check) for each in found.faults] == [("this machine", "data"), ("localhost", "ssh")]
    assert found.addresses == () and found.master_addr is None
    no_folder = preflight([LOCALHOST], Refused(), Need((), tmp_path / "no", environment))
    assert [(each.host, each.check) for each in no_folder.faults] == [("this machine", "run folder")]


def test_a_name_that_means_nothing_is_not_connected_to(tmp_path: Path, environment: dict[str, str]) -> None:
    hosts = [Host("no-such-host.invalid", (0,)), LOCALHOST]
    found = preflight(hosts, Refused(), Need((), tmp_path, environment))
    assert [(each.host, each.check) for each in found.faults] == [
        ("no-such-host.invalid", "name"),
        ("localhost", "ssh"),
    ]
    assert "does not resolve" in found.faults[0].message and list(tmp_path.iterdir()) == []


def report_of(findings: Findings) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_findings(console, findings)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def two_hosts() -> tuple[CheckedHost, ...]:
    return tuple(
        CheckedHost(Host(name, (0, 1)), Report("3.11.7", 0.0, answer(name, number)), "eth0", speed)
        for number, (name, speed) in enumerate(
            {
                "alpha": {"latency_seconds": 0.0002, "bytes_per_second": 2e8},
                "beta": {"latency_seconds": 0.0003, "bytes_per_second": 1e8},
            }.items(),
            1,
        )
    )


def test_the_report_of_a_job_that_may_start() -> None:
    text = report_of(Findings(two_hosts(), (), "10.0.0.1", 29500, ("10.0.0.1",)))
    lines = text.splitlines()
    assert lines[0].split() == [
        *("host", "slots", "devices", "versions", "data", "clock", "free", "interface", "all-reduce")
    ]
    assert lines[1].split() == [
        "alpha",
        "2",
        "2",
        "cuda",
        "same",
        "same",
        "+0.0",
        "s",
        "1",
        "GiB",
        "eth0",
        "200",
        "MB/s",
    ]
    assert "a job may start: ranks meet at 10.0.0.1, port 29500" in text and "takes 0.3 ms" in text


def test_the_first_cause_of_each_host_and_its_fix() -> None:
    alpha, beta = two_hosts()
    faults = (
        Fault("alpha", "versions", "torch there is 1, here 2", "install"),
        Fault("alpha", "clock", "its clock is off", "NTP"),
        Fault("beta", "ssh", "no sshd listens there", "start it [there]"),
    )
    findings = Findings((alpha, replace(beta, report=None, interface=None, speed=None)), faults)
    assert explain(findings) == [
        "alpha: versions: torch there is 1, here 2 (wrong there, too: clock)\n  fix: install",
        "beta: ssh: no sshd listens there\n  fix: start it [there]",
    ]
    assert "no answer" in report_of(findings) and "start it [there]" in report_of(findings)


def test_the_command_ends_with_2_if_no_job_may_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("no-such-host.invalid slots=1\n")
    monkeypatch.setattr("lartpc_ds.jobs.preflight.preflight_report.reach_for", lambda launcher: Refused())
    monkeypatch.chdir(tmp_path)
    assert check(hostfile, Console(file=io.StringIO())) == 2
    assert os.listdir(tmp_path) == ["hosts"]


def test_a_launcher_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be one of pdsh, openmpi, slurm"):
        check(tmp_path / "hosts", Console(file=io.StringIO()), launcher="mpich")
