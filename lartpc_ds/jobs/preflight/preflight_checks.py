"""Pure functions from the answers of hosts to their faults, in the order in which a user should mend them.

Where the failure of a check makes the later ones meaningless, they are left out for that host. All other faults are
reported, so that one round of repairs is enough. Each fault names what was found, what is needed, and the fix.
"""

import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lartpc_ds.jobs.hosts.faults import Fault
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.preflight.probe import Answer

__all__ = [
    "Here",
    "Report",
    "check_answer",
    "check_first_line",
    "check_kinds",
    "clock_skew_seconds",
]

# Training compares no clocks, but times of files (a stale checkpoint), logs that are read together, Kerberos and Munge
# do; Munge, with which Slurm signs, fails at 300 s. Hosts under NTP differ by milliseconds: at 5 s, NTP does not run.
_MAX_CLOCK_SKEW_SECONDS = 5.0
_MIN_FREE_BYTES = 2**30  # two checkpoints of the largest shipped network with the state of Adam, and the logs


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of one host: the content of its first line, and all the rest."""

    python: str
    skew_seconds: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Here:
    """The facts of this machine, with which the hosts are compared."""

    packages: Mapping[str, str]
    files: Mapping[str, tuple[int, int]]  # size in bytes, mtime in whole seconds
    run_folder: str | None
    tokens: Mapping[str, str]  # text in the run folder, by host
    folder: str


def clock_skew_seconds(remote: float, started: float, answered: float) -> float:
    """The least amount by which a clock is off, with its sign; it was read at some moment of the round trip."""
    middle, half = (started + answered) / 2, (answered - started) / 2
    off = remote - middle
    return max(0.0, off - half) if off > 0 else min(0.0, off + half)


def check_first_line(host: str, python: str) -> Iterator[Fault]:
    """Check the version of Python, which comes before anything else."""
    needed = platform.python_version()
    if python != needed:
        yield Fault(
            host,
            "python",
            f"{sys.executable} there is Python {python}; this machine has {needed}",
            "install the same environment on every host, or use one on a shared file system",
        )


def check_answer(host: Host, first: str, report: Report, here: Here) -> list[Fault]:
    """All faults of one host by itself."""
    faults = [*check_first_line(host.name, report.python)]
    if faults:
        return faults
    faults += _resolving(host.name, first, report.answer)
    faults += _folder_and_packages(host.name, report.answer, here)
    if not faults:
        faults += _devices(host, report.answer)
    faults += _clock(host.name, report.skew_seconds)
    faults += _files(host.name, report.answer, here)
    faults += _run_folder(host.name, report.answer, here)
    if not report.answer["called_back"]:
        faults.append(
            Fault(
                host.name,
                "call back",
                "it cannot open a TCP connection to this machine at any of its addresses",
                "let the hosts reach this machine: a firewall (ufw, firewalld) must allow TCP among them; "
                "or start from one of the hosts",
            )
        )
    return faults


def _resolving(host: str, first: str, answer: Answer) -> Iterator[Fault]:
    """Check the name of the first host; on that host itself it may be loopback, as Debian's installer has it."""
    addresses = answer["first_addresses"]
    if isinstance(addresses, str):
        yield Fault(
            host,
            "name",
            f"{first!r} does not resolve there: {addresses}",
            f"add {first} to DNS, or to /etc/hosts there",
        )
    elif host != first and all(address.startswith("127.") for address in addresses):
        yield Fault(
            host,
            "name",
            f"{first!r} resolves to {', '.join(addresses)} there, which is that host itself",
            f"give {first} the address that other hosts reach in /etc/hosts there (a line copied from {first} itself?)",
        )


def _folder_and_packages(host: str, answer: Answer, here: Here) -> Iterator[Fault]:
    if answer["folder"] is not None:
        yield Fault(
            host,
            "folder",
            f"{here.folder}: {answer['folder']} there, and ranks start in it",
            "start from a folder that every host sees",
        )
        return
    packages = answer["packages"]
    if isinstance(packages, str):
        yield Fault(host, "versions", f"Python there fails: {packages}", "mend or copy the environment")
        return
    different = [name for name, needed in here.packages.items() if packages.get(name) != needed]
    if different:
        yield Fault(
            host,
            "versions",
            "; ".join(
                f"{name} there is {packages.get(name, 'missing')}, here {here.packages[name]}" for name in different
            ),
            "install the same versions on every host (pip install with the same constraints), or use one environment "
            "on a shared file system",
        )


def _devices(host: Host, answer: Answer) -> Iterator[Fault]:
    devices = answer["devices"]
    if not isinstance(devices, dict):
        yield Fault(host.name, "devices", f"DeepSpeed does not import: {devices}", "mend the environment there")
        return
    kind = devices["kind"]  # DeepSpeed's device numbers mean something on GPUs only
    needed = host.slots if kind == "cpu" else max(host.devices) + 1
    if devices["count"] < needed:
        what = "cores" if kind == "cpu" else f"{kind} devices"
        asked = f"{host.slots} slots" if needed == host.slots else f"device {needed - 1}"
        yield Fault(
            host.name,
            "devices",
            f"it has {devices['count']} {what}, and the hostfile asks for {asked}",
            f"write slots={devices['count']} or less for {host.name} in the hostfile",
        )


def _clock(host: str, skew_seconds: float) -> Iterator[Fault]:
    if abs(skew_seconds) > _MAX_CLOCK_SKEW_SECONDS:
        side = "ahead of" if skew_seconds > 0 else "behind"
        yield Fault(
            host,
            "clock",
            f"its clock is {abs(skew_seconds):.0f} s {side} this machine's; at most {_MAX_CLOCK_SKEW_SECONDS:g} s",
            "switch NTP on there: timedatectl set-ntp true",
        )


def _files(host: str, answer: Answer, here: Here) -> Iterator[Fault]:
    """Check the data files; there is one fault for all, because a folder that is not mounted would give a thousand."""
    wrong: list[str] = []
    for path, (size, mtime) in here.files.items():
        stat = answer["files"][path]
        if isinstance(stat, str):
            wrong.append(f"{path}: {stat}")
        elif stat[0] != size:
            wrong.append(f"{path}: {stat[0]} bytes there, {size} here")
        elif stat[1] != mtime:
            wrong.append(f"{path}: last written {stat[1] - mtime:+d} s from the one here")
    if wrong:
        more = f" (and {len(wrong) - 1} more files)" if len(wrong) > 1 else ""
        yield Fault(
            host,
            "data",
            f"{wrong[0]}{more}",
            "every host must read the same files at the same paths: a shared file system, or rsync -a",
        )


def _run_folder(host: str, answer: Answer, here: Here) -> Iterator[Fault]:
    if here.run_folder is None:
        return
    if not answer["token_read"] or answer["token"] != here.tokens[host]:
        why = "not the same folder" if answer["token_read"] else answer["token"]
        yield Fault(
            host,
            "run folder",
            f"{here.run_folder}: {why} there",
            "put runs on a file system that all hosts share, with the same rights there (--run-dir)",
        )
    elif answer["free_bytes"] < _MIN_FREE_BYTES:
        yield Fault(
            host,
            "space",
            f"{here.run_folder}: {answer['free_bytes'] / 2**30:.2f} GiB free there; at least "
            f"{_MIN_FREE_BYTES / 2**30:g} GiB",
            "free some space, or choose another --run-dir",
        )


def check_kinds(answers: Mapping[str, Answer]) -> Iterator[Fault]:
    """Check that all hosts have the kind of accelerator of the first host."""
    kinds = {name: answer["devices"]["kind"] for name, answer in answers.items() if isinstance(answer["devices"], dict)}
    first = next(iter(kinds), "")
    for name, kind in kinds.items():
        if kind != kinds[first]:
            yield Fault(
                name,
                "devices",
                f"its accelerator is {kind!r}, that of {first} is {kinds[first]!r}",
                "use hosts of one kind; a GPU that is not found is a matter of its driver there (nvidia-smi)",
            )
