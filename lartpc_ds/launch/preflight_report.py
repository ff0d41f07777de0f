"""The preflight on the terminal: a row a host, then for each host its first problem and what to do about it."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from lartpc_ds.launch.preflight import Findings, HostFindings

__all__ = ["explain", "print_findings"]

_COLUMNS = ("host", "slots", "devices", "python", "torch", "deepspeed", "clock", "free", "interface", "all-reduce")


def print_findings(console: Console, findings: Findings) -> None:
    """The whole report; the sentences of `explain` below the table."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    bad = {problem.host for problem in findings.problems}
    for found in findings.hosts:
        table.add_row(*_cells(found), style="red" if found.host.name in bad else None)
    console.print(table)
    for line in explain(findings):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(found: HostFindings) -> Iterator[str]:
    yield found.host.name
    yield str(found.host.slots)
    if found.report is None:
        yield "no answer"
        return
    report, answer = found.report, found.report.answer
    devices, packages = answer["devices"], answer["packages"]
    yield f"{devices['count']} {devices['kind']}" if isinstance(devices, dict) else "?"
    yield report.python
    for name in ("torch", "deepspeed"):
        yield packages[name] if isinstance(packages, dict) else "?"
    yield f"{report.skew_seconds:+.1f} s"
    yield f"{answer['free_bytes'] / 2**30:.1f} GiB" if answer["token"] is not None else "-"
    yield found.interface or "?"
    if found.speed is None:
        yield "-"
    else:
        rate = found.speed["bytes_per_second"] / 1e6
        yield f"{rate:.0f} MB/s, {found.speed['latency_seconds'] * 1e6:.0f} us"


def explain(findings: Findings) -> list[str]:
    """One sentence and its fix a host that has a problem; else where the job will meet."""
    if findings.ok:
        text = f"a job may start: ranks meet at {findings.master_addr}, port {findings.master_port}"
        return [f"{text}; every host reaches this machine at {', '.join(findings.addresses)}"]
    lines, told = [], set()
    for problem in findings.problems:
        if problem.host in told:
            continue
        told.add(problem.host)
        others = sorted({each.check for each in findings.problems if each.host == problem.host} - {problem.check})
        more = f" (wrong there, too: {', '.join(others)})" if others else ""
        lines.append(f"{problem.host}: {problem.check}: {problem.message}{more}\n  fix: {problem.fix}")
    return lines
