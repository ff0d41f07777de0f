"""The preflight on the terminal: a row a host, then for each host its first fault and what to do about it."""

import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lartpc_ds.jobs.hosts.reach import reach_for
from lartpc_ds.jobs.preflight.preflight import Findings, HostFindings, Need, preflight
from lartpc_ds.jobs.site import Site, forwarded
from lartpc_ds.report.say import say

__all__ = ["ask_hosts", "explain", "print_findings"]

_COLUMNS = ("host", "slots", "devices", "versions", "data", "clock", "free", "interface", "all-reduce")


def ask_hosts(site: Site, data_files: Sequence[Path], run_folder: Path, console: Console) -> Findings:
    """Ask all hosts of a site whether a job may start on them, and print what they answer."""
    assert site.launcher is not None, "this machine alone has nobody to ask"
    need = Need(tuple(map(str, data_files)), run_folder, {**forwarded(os.environ), **site.environment})
    with console.status(f"asking {len(site.hosts)} host(s)", spinner="line"):
        findings = preflight(site.hosts, reach_for(site.launcher), need)
    print_findings(console, findings)
    return findings


def print_findings(console: Console, findings: Findings) -> None:
    """The whole report; the sentences of `explain` below the table."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for found in findings.hosts:
        wrong = {fault.check for fault in findings.faults if fault.host == found.host.name}
        table.add_row(*_cells(found, wrong), style="red" if wrong else None)
    console.print(table)
    for line in explain(findings):
        say(console, line)


def _cells(found: HostFindings, wrong: Set[str]) -> Iterator[str]:
    yield found.host.name
    yield str(found.host.slots)
    if found.report is None:
        yield "no answer"
        return
    answer = found.report.answer
    devices = answer["devices"]
    yield f"{devices['count']} {devices['kind']}" if isinstance(devices, dict) else "?"
    yield "differ" if wrong & {"python", "versions"} else "same"
    yield "-" if not answer["files"] else "differ" if "data" in wrong else "same"
    yield f"{found.report.skew_seconds:+.1f} s"
    yield f"{answer['free_bytes'] / 2**30:.0f} GiB" if answer["token"] is not None else "-"
    yield found.interface or "-"
    yield "-" if found.speed is None else f"{found.speed['bytes_per_second'] / 1e6:.0f} MB/s"


def explain(findings: Findings) -> list[str]:
    """One sentence and its fix a host that has a fault; else where the job will meet."""
    if findings.ok:
        text = f"a job may start: ranks meet at {findings.master_addr}, port {findings.master_port}"
        slowest = max((found.speed["latency_seconds"] for found in findings.hosts if found.speed), default=None)
        latency = "" if slowest is None else f"; a small all-reduce takes {slowest * 1e3:.2g} ms"
        return [f"{text}; every host reaches this machine at {', '.join(findings.addresses)}{latency}"]
    lines: list[str] = []
    told: set[str] = set()
    for fault in findings.faults:
        if fault.host in told:
            continue
        told.add(fault.host)
        others = sorted({each.check for each in findings.faults if each.host == fault.host} - {fault.check})
        more = f" (wrong there, too: {', '.join(others)})" if others else ""
        lines.append(f"{fault.host}: {fault.check}: {fault.message}{more}\n  fix: {fault.fix}")
    return lines
