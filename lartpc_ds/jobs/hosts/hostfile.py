"""Hostfiles: the hosts that a job runs on, and the number of ranks on each.

The format is that of DeepSpeed, because DeepSpeed's launcher reads the file again: a line `NAME slots=N` per host,
blank lines, and `#` before a comment. DeepSpeed's parser takes the start of a line and ignores the rest (`slots=4
max_slots=8`, `slots=4.5`), stops at the first error and gives no line number. This one accepts nothing that DeepSpeed
would read differently, and reports every error at once. Rejected: calling DeepSpeed's functions, which have these
faults and import torch to read ten lines of text. Tests prove that both read files and filters alike.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lartpc_ds.errors import UserError

__all__ = ["MOST_SLOTS", "Host", "name_problem", "parse", "read", "render", "select"]

MOST_SLOTS = 1024
"""More slots than any machine has devices: a larger number is a typing mistake."""

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_LONGEST_NAME = 253  # the limit of DNS
_NEWLINE = re.compile("\r\n|\r|\n")  # the line ends of text files in Python, and so of DeepSpeed
_BLANKS = " \t"
_SHAPE = f'a line is NAME slots=N, N from 1 to {MOST_SLOTS}; "#" starts a comment'


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a job.

    Args:
        name: the name by which ssh reaches it.
        devices: the numbers of the devices that ranks run on, one rank per device.
    """

    name: str
    devices: tuple[int, ...]

    @property
    def slots(self) -> int:
        """The number of ranks."""
        return len(self.devices)


def read(path: Path) -> tuple[Host, ...]:
    """Read a hostfile; returns its hosts in their order.

    Raises:
        UserError: it is no readable text file, or lines are wrong; the message names all of them.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this hostfile: {error.strerror}") from None
    try:
        return parse(data.decode(), str(path))
    except UnicodeDecodeError as error:
        line = len(_NEWLINE.findall(data[: error.start].decode(errors="replace"))) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 text; save the file as UTF-8 or plain ASCII") from None


def parse(text: str, source: str) -> tuple[Host, ...]:
    """Parse the text of a hostfile; returns its hosts in their order.

    Args:
        text: the content of the file.
        source: the name of the file in messages, usually its path.

    Raises:
        UserError: naming every wrong line with its number, text and fix.
    """
    hosts: list[Host] = []
    problems: list[str] = []
    lines: dict[str, int] = {}  # by name in lower case, because upper and lower case are the same in names of hosts
    for number, line in enumerate(_NEWLINE.split(text), 1):
        entry = line.strip(_BLANKS)
        if not entry or entry.startswith("#"):
            continue
        try:
            host = _host(entry)
        except UserError as error:
            problems.append(f"line {number}, {_shown(entry)}: {error}")
            continue
        first = lines.setdefault(host.name.lower(), number)
        if first != number:
            problems.append(
                f"line {number}, {_shown(entry)}: line {first} names this host already; "
                "keep one line with the slots of both, or of one"
            )
        hosts.append(host)
    if problems:
        raise UserError("\n  ".join([f"{source}: {_SHAPE}", *problems]))
    if not hosts:
        raise UserError(f"{source}: names no host; {_SHAPE}")
    return tuple(hosts)


def _host(entry: str) -> Host:
    """The host of one line; raises a UserError that says what is wrong with the line and how it should read."""
    name, *rest = re.split(rf"[{_BLANKS}]+", entry, maxsplit=1)
    _check_name(name)
    if not rest or rest[0].startswith("#"):
        raise UserError(f"no number of slots; write {name} slots=N")
    slots = re.match(r"slots=([0-9]+)", rest[0])
    if slots is None:
        raise UserError(_not_slots(name, rest[0]))
    left_over = rest[0][slots.end() :]
    digits = slots[1].lstrip("0")
    if left_over and not re.match(rf"[{_BLANKS}]*#", left_over):
        if left_over[0] not in _BLANKS:
            raise UserError(f"{_shown(rest[0])} is not a number of slots; write {name} slots=N")
        ignored = left_over.strip(_BLANKS)
        raise UserError(f"DeepSpeed would silently ignore {_shown(ignored)}; delete it, or put a # before it")
    if digits == "":
        raise UserError("a host of a job has at least one slot; delete the line, or put a # before it")
    if len(digits) > 4 or int(digits) > MOST_SLOTS:
        raise UserError(f"slots={_clipped(slots[1])} is more than any host has; 1 to {MOST_SLOTS} are allowed")
    return Host(name, tuple(range(int(digits))))


def _check_name(name: str) -> None:
    as_mpi, colon, count = name.rpartition(":")
    if colon and not name_problem(as_mpi) and re.fullmatch("[0-9]+", count):
        raise UserError(f"this is the form of another program; write {as_mpi} slots={_clipped(count)}")
    if name.startswith("slots="):
        raise UserError(f"no name before the slots; write NAME {_clipped(name)}")
    problem = name_problem(name)
    if problem:
        raise UserError(f"{_shown(name)}: {problem}")


def _not_slots(name: str, rest: str) -> str:
    number = re.fullmatch(
        r"(?:slots|cpus?|n|np|count|max[-_]slots)?\s*[=:]?\s*([0-9]+)", rest, re.IGNORECASE | re.ASCII
    )
    return (
        f"{_shown(rest)} is not slots=N (small letters, no blanks around =, a whole number); "
        f"write {name} slots={_clipped(number[1]) if number else 'N'}"
    )


def name_problem(name: str) -> str:
    """Say why this is not the name of a host, and what to do; empty if it is one."""
    if name.startswith("\ufeff"):
        return "starts with a byte-order mark; save the file without one"
    if "@" in name:
        return "a user's name cannot stand here (@ separates hosts in filters); put User into ~/.ssh/config"
    if re.search(r"[][,*]", name):
        return "one host a line; `lartpc-ds hostfile make 'gpu[01-04]:4'` writes the lines of a list"
    if name.count(":") > 1:
        return "an IPv6 address cannot stand here (: separates slots in filters); give it a name in /etc/hosts"
    if _NAME.fullmatch(name) is None or len(name) > _LONGEST_NAME:
        return f"is no host name (letters A-Z, digits, . - _ inside, at most {_LONGEST_NAME}) and no IPv4 address"
    return ""


def _shown(text: str) -> str:
    return ascii(_clipped(text))


def _clipped(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def select(hosts: Sequence[Host], include: str, exclude: str) -> tuple[Host, ...]:
    """The part of the hosts that a filter leaves, in their order.

    Args:
        hosts: the hosts of a hostfile.
        include: a filter as of DeepSpeed, NAME[:SLOT[,SLOT]...][@NAME...], for the hosts to keep; empty for all.
        exclude: a filter with the same syntax for the hosts to leave out; empty for none.

    Raises:
        UserError: both filters are given, terms are wrong (the message names all of them), or nothing is left.
            DeepSpeed reads `a@a:0` as `a:0`; here it is refused.
    """
    if include and exclude:
        raise UserError(f"--include {include!r} and --exclude {exclude!r}: give one of the two")
    if not include and not exclude:
        return tuple(hosts)
    option = f"--include {include!r}" if include else f"--exclude {exclude!r}"
    named = _named(hosts, include or exclude, option)
    kept = []
    for host in hosts:
        slots = named.get(host.name, set())
        devices = tuple(device for device in host.devices if (device in slots) == bool(include))
        if devices:
            kept.append(Host(host.name, devices))
    if not kept:
        raise UserError(f"{option}: leaves no slot of any host; leave at least one")
    return tuple(kept)


def _named(hosts: Sequence[Host], text: str, option: str) -> dict[str, set[int]]:
    """The slots that a filter names, by host."""
    known = {host.name: host.devices for host in hosts}
    named: dict[str, set[int]] = {}
    whole: dict[str, bool] = {}
    problems = []
    for term in text.split("@"):
        name, colon, slots = term.partition(":")
        numbers = slots.split(",")
        if name not in known:
            problems.append(f"{term!r}: the hostfile has no host {name!r}; it has {_listed(known)}")
        elif colon and not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
            problems.append(f"{term!r}: slots must be numbers between commas, as in {name}:0,1")
        elif unknown := [number for number in numbers if colon and int(number) not in known[name]]:
            problems.append(f"{term!r}: {name} has no slot {', '.join(unknown)}; it has {_listed(known[name])}")
        elif whole.setdefault(name, not colon) == bool(colon):
            problems.append(f"{term!r}: {name} is named both as a whole and by slots; name it once")
        else:
            named.setdefault(name, set()).update(map(int, numbers) if colon else known[name])
    if problems:
        raise UserError("\n  ".join([f"{option}: must be NAME[:SLOT[,SLOT]...][@NAME...]", *problems]))
    return named


def _listed(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts) if len(texts) <= 16 else f"{', '.join(texts[:15])}, ... {texts[-1]}"


def render(hosts: Sequence[Host], comments: Sequence[str]) -> str:
    """The text of a hostfile: comments, then a line per host, in ASCII whatever the comments contain.

    Every host must have the devices 0 to slots - 1, because a hostfile cannot express anything else.
    """
    assert hosts and all(host.devices == tuple(range(host.slots)) and host.slots for host in hosts)
    notes = [line for comment in comments for line in comment.splitlines() or [""]]
    lines = [f"# {note}".rstrip() for note in notes] + [f"{host.name} slots={host.slots}" for host in hosts]
    return "".join(f"{line}\n" for line in lines).encode("ascii", "backslashreplace").decode()
