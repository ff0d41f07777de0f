"""From what the hosts said to what is wrong: pure functions, in the order in which a user should mend things.

A check whose failure makes the later ones meaningless ends them for its host; the others are all reported, so that one
round of repairs is enough. Each names what was found, what is needed and the fix.
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

# Nothing in training compares clocks, but file times (a stale checkpoint), logs side by side and Kerberos or Munge do;
# Munge, which Slurm signs with, gives up at 300 s. Hosts under NTP differ by milliseconds: 5 s says that NTP is off.
_MAX_CLOCK_SKEW_SECONDS = 5.0
_MIN_FREE_BYTES = 2**30  # a checkpoint with Adam's state of the largest shipped network, twice over, and the logs


@dataclass(frozen=True, slots=True)
class Report:
    """What came back from one host: its first line, and all the rest."""

    python: str
    skew_seconds: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Here:
    """This machine, against which the hosts are compared."""

    packages: Mapping[str, str]
    files: Mapping[str, tuple[int, int]]  # size in bytes, mtime in whole seconds
    run_folder: str | None
    tokens: Mapping[str, str]  # text in the run folder, by host
    folder: str


def clock_skew_seconds(remote: float, started: float, answered: float) -> float:
    """How much a clock is off at least, signed; the moment of its reading is known to the round trip only."""
    middle, half = (started + answered) / 2, (answered - started) / 2
    off = remote - middle
    return max(0.0, off - half) if off > 0 else min(0.0, off + half)


def check_first_line(host: str, python: str) -> Iterator[Fault]:
    """The version of Python, which came before anything else."""
    needed = platform.python_version()
    if python != needed:
        yield Fault(
            host,
            "python",
            f"{sys.executable} there is Python {python}; this machine has {needed}",
            "install the same environment on every host, or use one on a shared file system",
        )


def check_answer(host: Host, first: str, report: Report, here: Here) -> list[Fault]:
    """All that is wrong with one host by itself."""
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
    """The first host's name; its own name may be loopback there, as Debian's installer writes it."""
    found = answer["first_addresses"]
    if isinstance(found, str):
        yield Fault(
            host, "name", f"{first!r} does not resolve there: {found}", f"add {first} to DNS, or to /etc/hosts there"
        )
    elif host != first and all(address.startswith("127.") for address in found):
        yield Fault(
            host,
            "name",
            f"{first!r} resolves to {', '.join(found)} there, which is that host itself",
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
    found = answer["packages"]
    if isinstance(found, str):
        yield Fault(host, "versions", f"Python there fails: {found}", "mend or copy the environment")
        return
    different = [name for name, needed in here.packages.items() if found.get(name) != needed]
    if different:
        yield Fault(
            host,
            "versions",
            "; ".join(
                f"{name} there is {found.get(name, 'missing')}, here {here.packages[name]}" for name in different
            ),
            "install the same versions on every host (pip install with the same constraints), or use one environment "
            "on a shared file system",
        )


def _devices(host: Host, answer: Answer) -> Iterator[Fault]:
    found = answer["devices"]
    if not isinstance(found, dict):
        yield Fault(host.name, "devices", f"DeepSpeed does not import: {found}", "mend the environment there")
        return
    kind = found["kind"]  # DeepSpeed's device numbers mean something on GPUs only
    needed = host.slots if kind == "cpu" else max(host.devices) + 1
    if found["count"] < needed:
        what = "cores" if kind == "cpu" else f"{kind} devices"
        asked = f"{host.slots} slots" if needed == host.slots else f"device {needed - 1}"
        yield Fault(
            host.name,
            "devices",
            f"it has {found['count']} {what}, and the hostfile asks for {asked}",
            f"write slots={found['count']} or less for {host.name} in the hostfile",
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
    """One fault for all files: a folder that is not mounted makes a thousand."""
    wrong: list[str] = []
    for path, (size, mtime) in here.files.items():
        found = answer["files"][path]
        if isinstance(found, str):
            wrong.append(f"{path}: {found}")
        elif found[0] != size:
            wrong.append(f"{path}: {found[0]} bytes there, {size} here")
        elif found[1] != mtime:
            wrong.append(f"{path}: last written {found[1] - mtime:+d} s from the one here")
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
    """One kind of accelerator everywhere: the first host's."""
    kinds = {name: found["devices"]["kind"] for name, found in answers.items() if isinstance(found["devices"], dict)}
    first = next(iter(kinds), "")
    for name, kind in kinds.items():
        if kind != kinds[first]:
            yield Fault(
                name,
                "devices",
                f"its accelerator is {kind!r}, that of {first} is {kinds[first]!r}",
                "use hosts of one kind; a GPU that is not found is a matter of its driver there (nvidia-smi)",
            )
