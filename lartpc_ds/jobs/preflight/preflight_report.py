"""The preflight on the terminal: a row a host, then for each host its first problem and what to do about it."""

from collections.abc import Iterator, Set

from rich.console import Console
from rich.table import Table

from lartpc_ds.jobs.preflight.preflight import Findings, HostFindings

__all__ = ["explain", "print_findings"]

_COLUMNS = ("host", "slots", "devices", "versions", "data", "clock", "free", "interface", "all-reduce")


def print_findings(console: Console, findings: Findings) -> None:
    """The whole report; the sentences of `explain` below the table."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for found in findings.hosts:
        wrong = {problem.check for problem in findings.problems if problem.host == found.host.name}
        table.add_row(*_cells(found, wrong), style="red" if wrong else None)
    console.print(table)
    for line in explain(findings):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    """One sentence and its fix a host that has a problem; else where the job will meet."""
    if findings.ok:
        text = f"a job may start: ranks meet at {findings.master_addr}, port {findings.master_port}"
        slowest = max((found.speed["latency_seconds"] for found in findings.hosts if found.speed), default=None)
        latency = "" if slowest is None else f"; a small all-reduce takes {slowest * 1e3:.2g} ms"
        return [f"{text}; every host reaches this machine at {', '.join(findings.addresses)}{latency}"]
    lines: list[str] = []
    told: set[str] = set()
    for problem in findings.problems:
        if problem.host in told:
            continue
        told.add(problem.host)
        others = sorted({each.check for each in findings.problems if each.host == problem.host} - {problem.check})
        more = f" (wrong there, too: {', '.join(others)})" if others else ""
        lines.append(f"{problem.host}: {problem.check}: {problem.message}{more}\n  fix: {problem.fix}")
    return lines
