"""The preflight: a check, before a job starts, that it can run on its hosts.

Each host answers a probe (`asking`, `probe`), and the answer is compared with this machine (`preflight_checks`). If
there is no fault, the hosts sum a tensor together (`allreduce`). All hosts are asked at once and every wait is limited,
so that a fault is named in seconds, which a launcher would show as a rank that hangs.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from lartpc_ds.jobs.hosts.faults import Fault, fault_of
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.hosts.reach import Reach, run_python
from lartpc_ds.jobs.preflight.asking import THIS_MACHINE, Need, ask_all
from lartpc_ds.jobs.preflight.meeting import interface_of, master_address
from lartpc_ds.jobs.preflight.preflight_checks import Report, check_answer, check_kinds

__all__ = ["CheckedHost", "Findings", "Need", "preflight"]

_RESOLVE_SECONDS = 15.0  # two name servers that do not answer take 10
_SUM_SECONDS = 100.0  # for the import of torch, and the limits of the processes themselves


@dataclass(frozen=True, slots=True)
class CheckedHost:
    """A host, and what was found about it."""

    host: Host
    report: Report | None = None
    """Its answer; None if there was none."""
    interface: str | None = None
    """Its network interface for the job."""
    speed: Mapping[str, float] | None = None
    """`latency_seconds` and `bytes_per_second` of the all-reduce; None on a single host."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of the whole preflight; without faults every field is set."""

    hosts: tuple[CheckedHost, ...]
    faults: tuple[Fault, ...]
    master_addr: str | None = None
    """The address at which all others reach the first host."""
    master_port: int | None = None
    """A port that was free there a moment ago."""
    addresses: tuple[str, ...] = ()
    """The addresses of this machine that every host has reached."""

    @property
    def accelerator(self) -> str:
        """DeepSpeed's name for the accelerator of the hosts; there must be no faults."""
        report = self.hosts[0].report
        assert self.ok and report is not None and isinstance(report.answer["devices"], dict)
        return str(report.answer["devices"]["kind"])

    @property
    def ok(self) -> bool:
        """Whether a job may start."""
        return not self.faults


def preflight(hosts: Sequence[Host], reach: Reach, need: Need) -> Findings:
    """Check all hosts at the same time.

    Args:
        hosts: the hosts in the order of their ranks; ranks meet on the first.
        reach: the way to a host that the launcher will take.
        need: what ranks need from each host.
    """
    with ThreadPoolExecutor(max_workers=2 * len(hosts) + 1) as pool:
        unresolved = _unresolved(hosts, pool)
        gone = {fault.host for fault in unresolved}
        reachable = [host for host in hosts if host.name not in gone]
        here, reports, faults = ask_all(reachable, hosts[0].name, reach, need, pool)
        faults = [*unresolved, *faults]
        if here is not None:
            for host in hosts:
                if host.name in reports:
                    faults += check_answer(host, hosts[0].name, reports[host.name], here)
        checked = tuple(CheckedHost(host, reports.get(host.name)) for host in hosts)
        answers = {name: report.answer for name, report in reports.items()}
        faults += check_kinds(answers)
        addresses = _common_addresses(hosts, reports)
        if len(answers) == len(hosts) and not addresses and all(answer["called_back"] for answer in answers.values()):
            faults.append(_no_common_address())
        if faults:
            return Findings(checked, _in_order(faults, hosts), addresses=addresses)
        return _meet(checked, reach, need, addresses, pool)


def _unresolved(hosts: Sequence[Host], pool: Executor) -> list[Fault]:
    """A fault for every host whose name does not resolve here."""
    lookups = {host.name: pool.submit(socket.getaddrinfo, host.name, None, socket.AF_INET) for host in hosts}
    faults = []
    for name, lookup in lookups.items():
        try:
            lookup.result(_RESOLVE_SECONDS)
        except (OSError, UnicodeError) as error:
            why = f"no answer in {_RESOLVE_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
            fix = "check the spelling in the hostfile; else add it to DNS, or to /etc/hosts on every host"
            faults.append(Fault(name, "name", f"the name does not resolve to an address here: {why}", fix))
    return faults


def _common_addresses(hosts: Sequence[Host], reports: Mapping[str, Report]) -> tuple[str, ...]:
    """The addresses of this machine that were reached by all hosts that answered."""
    lists = [reports[host.name].answer["called_back"] for host in hosts if host.name in reports]
    return tuple(address for address in lists[0] if all(address in other for other in lists)) if lists else ()


def _no_common_address() -> Fault:
    return Fault(
        THIS_MACHINE,
        "call back",
        "no single address of this machine is reached by every host",
        "start from one of the hosts, or from a machine in their network",
    )


def _in_order(faults: Sequence[Fault], hosts: Sequence[Host]) -> tuple[Fault, ...]:
    """The faults of this machine first, and then host by host, in the order of the checks."""
    places = {THIS_MACHINE: -1, **{host.name: place for place, host in enumerate(hosts)}}
    return tuple(sorted(faults, key=lambda fault: places[fault.host]))


def _meet(
    checked: Sequence[CheckedHost], reach: Reach, need: Need, addresses: tuple[str, ...], pool: Executor
) -> Findings:
    """The second half of the preflight: find where the hosts will meet, and run the all-reduce there."""
    hosts = [each.host for each in checked]
    answers = {each.host.name: each.report.answer for each in checked if each.report is not None}
    master, faults = master_address(hosts, answers)
    if master is None or faults:
        return Findings(tuple(checked), tuple(faults), addresses=addresses)
    first = answers[hosts[0].name]
    known = tuple(
        replace(each, interface=interface_of(answer, master if answer is first else answer["source"]))
        for each, answer in zip(checked, answers.values(), strict=True)
    )
    measured = _sum_together(known, reach, need, f"{master}:{first['ports'][1]}", pool) if len(known) > 1 else []
    faults = [each for each in measured if isinstance(each, Fault)]
    if measured and not faults:
        known = tuple(
            replace(each, speed=speed) for each, speed in zip(known, measured, strict=True) if isinstance(speed, dict)
        )
    return Findings(known, tuple(faults), master, first["ports"][0], addresses)


def _sum_together(
    checked: Sequence[CheckedHost], reach: Reach, need: Need, meeting: str, pool: Executor
) -> list[dict[str, float] | Fault]:
    """Run the all-reduce over all hosts; returns a speed or a fault of each host in their order."""
    runs = [
        pool.submit(_sum, each, reach, need, ["--rank", str(rank), "--world", str(len(checked)), "--master", meeting])
        for rank, each in enumerate(checked)
    ]
    results = [run.result() for run in runs]
    causes = [each for each in results if isinstance(each, Fault) and "timed out" not in each.message.lower()]
    if causes:  # when a host fails at once, the others wait for it and then time out
        return list(causes)
    return results


def _sum(checked: CheckedHost, reach: Reach, need: Need, place: Sequence[str]) -> dict[str, float] | Fault:
    assert checked.report is not None and checked.interface is not None
    devices = checked.report.answer["devices"]
    assert isinstance(devices, dict)
    kind = devices["kind"]
    device = kind if kind == "cpu" else f"{kind}:{checked.host.devices[0]}"  # the job may use this one
    options = ["--interface", checked.interface, "--backend", devices["backend"], "--device", device]
    arguments = [sys.executable, "-m", "lartpc_ds.jobs.preflight.allreduce", *place, *options]
    # it replaces itself by the all-reduce, so that variables and folder need not pass through a shell
    text = (
        f"import os\nos.chdir({os.getcwd()!r})\nos.environ.update({dict(need.environment)!r})\n"
        f"os.execv({sys.executable!r}, {arguments!r})\n"
    )
    outcome = run_python(reach, checked.host.name, text, _SUM_SECONDS)
    answers: list[dict[str, Any]] = [value for _, value in outcome.answers()]
    if answers and "error" not in answers[-1]:
        return answers[-1]
    why = answers[-1]["error"] if answers else fault_of(reach, checked.host.name, outcome).message
    return Fault(
        checked.host.name,
        "all-reduce",
        f"it could not sum a tensor with the others over {checked.interface}, meeting at {' '.join(place[-1:])}: {why}",
        "ranks open TCP connections to each other at any port: no firewall may stand between the hosts. If the "
        "interface is the wrong one, set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME",
    )
