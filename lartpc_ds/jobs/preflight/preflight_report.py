"""The preflight on the terminal: a row per host, then the first fault of each host and what to do about it."""

import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lartpc_ds.jobs.hosts.reach import reach_for
from lartpc_ds.jobs.preflight.preflight import CheckedHost, Findings, Need, preflight
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
    """Print the whole report: a table, and below it the sentences of `explain`."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for checked in findings.hosts:
        wrong = {fault.check for fault in findings.faults if fault.host == checked.host.name}
        table.add_row(*_cells(checked, wrong), style="red" if wrong else None)
    console.print(table)
    for line in explain(findings):
        say(console, line)


def _cells(checked: CheckedHost, wrong: Set[str]) -> Iterator[str]:
    yield checked.host.name
    yield str(checked.host.slots)
    if checked.report is None:
        yield "no answer"
        return
    answer = checked.report.answer
    devices = answer["devices"]
    yield f"{devices['count']} {devices['kind']}" if isinstance(devices, dict) else "?"
    yield "differ" if wrong & {"python", "versions"} else "same"
    yield "-" if not answer["files"] else "differ" if "data" in wrong else "same"
    yield f"{checked.report.skew_seconds:+.1f} s"
    yield f"{answer['free_bytes'] / 2**30:.0f} GiB" if answer["token"] is not None else "-"
    yield checked.interface or "-"
    yield "-" if checked.speed is None else f"{checked.speed['bytes_per_second'] / 1e6:.0f} MB/s"


def explain(findings: Findings) -> list[str]:
    """A sentence and a fix for each host with a fault; without faults, where the ranks will meet."""
    if findings.ok:
        text = f"a job may start: ranks meet at {findings.master_addr}, port {findings.master_port}"
        slowest = max((checked.speed["latency_seconds"] for checked in findings.hosts if checked.speed), default=None)
        latency = "" if slowest is None else f"; a small all-reduce takes {slowest * 1e3:.2g} ms"
        return [f"{text}; every host reaches this machine at {', '.join(findings.addresses)}{latency}"]
    lines: list[str] = []
    explained: set[str] = set()
    for fault in findings.faults:
        if fault.host in explained:
            continue
        explained.add(fault.host)
        others = sorted({each.check for each in findings.faults if each.host == fault.host} - {fault.check})
        more = f" (wrong there, too: {', '.join(others)})" if others else ""
        lines.append(f"{fault.host}: {fault.check}: {fault.message}{more}\n  fix: {fault.fix}")
    return lines
