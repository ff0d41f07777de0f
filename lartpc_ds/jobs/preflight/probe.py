"""The probe: code that is sent over a connection to any Python 3 on a host, and prints the facts about that host.

The host may lack our package or have another version of it, so this code uses only the standard library. The child that
it starts imports the package, in the folder and with the variables that the ranks will have. `script` makes the text to
send. The probe prints two lines: the first comes at once, with the clock and the version, before anything that could
fail or take long; the second is an `Answer`.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any, TypedDict

__all__ = ["Answer", "Request", "answer", "script"]

_CALL_BACK_SECONDS = 3.0
_TOKEN_SECONDS = 5.0  # a network file system may show a new file this late
_CHILD_SECONDS = 75  # the first import of torch from a network file system is slow


class Request(TypedDict):
    """The questions to a host."""

    first_host: str
    folder: str  # the current folder of the ranks
    environment: dict[str, str]  # the variables of the ranks
    files: list[str]
    run_folder: str | None
    token: str | None  # the name of a file in the run folder for this host alone
    call_back: list[str]  # the addresses at which the command line may listen
    call_back_port: int
    call_back_word: str  # the word that it sends there
    devices: bool  # whether to import DeepSpeed and count devices


class Answer(TypedDict):
    """The facts about a host; a text in place of a value is the reason why there is none."""

    first_addresses: list[str] | str
    interfaces: dict[str, list[str]]
    source: str  # the address of this host towards the first one, or the reason
    called_back: list[str]
    folder: str | None
    packages: dict[str, str] | str
    devices: dict[str, Any] | str | None  # kind, count, backend
    files: dict[str, list[int] | str]  # size in bytes, mtime in seconds
    token: str | None  # the text of the token, or the reason
    token_read: bool
    free_bytes: int
    ports: list[int]


_CHILD = """
import json, os, signal, sys
signal.alarm(int(sys.argv[2]))  # the child ends itself even if nobody waits for it
def say(name, value):
    print("@" + json.dumps({name: value}), flush=True)
import hashlib, importlib.metadata, pathlib
versions = {}
try:
    import lartpc_ds
    root = pathlib.Path(lartpc_ds.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    versions["lartpc_ds"] = lartpc_ds.__version__ + " (sources " + digest.hexdigest()[:8] + ")"
except ImportError as error:
    versions["lartpc_ds"] = "missing: " + str(error)
for name in ("torch", "deepspeed"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = "missing"
say("packages", versions)
if sys.argv[1] == "devices":
    from deepspeed.accelerator import get_accelerator
    accelerator = get_accelerator()
    kind = accelerator.device_name()
    count = len(os.sched_getaffinity(0)) if kind == "cpu" else accelerator.device_count()
    say("devices", {"kind": kind, "count": count, "backend": accelerator.communication_backend_name()})
"""


def script(request: Request) -> str:
    """The text to send; any Python 3 can parse all but the quoted part."""
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    return (
        "import json, platform, time\n"
        "print(json.dumps({'time': time.time(), 'python': platform.python_version()}), flush=True)\n"
        "names = {'__name__': 'probe'}\n"
        f"exec(compile({source!r}, 'probe', 'exec'), names)\n"
        f"print(json.dumps(names['answer'](json.loads({json.dumps(request)!r}))), flush=True)\n"
    )


def answer(request: Request) -> Answer:
    """Find all facts about this host within a limited time."""
    child: dict[str, Any] = {}
    about_child = threading.Thread(target=lambda: child.update(_ask_child(request)))
    about_child.start()  # this takes seconds, and the rest is done meanwhile
    first = _resolve(request["first_host"])
    called_back = _call_back(request)
    token, token_read = _token(request)
    folder = None if os.path.isdir(request["folder"]) else "no such folder"
    facts = Answer(
        first_addresses=first,
        interfaces=_interfaces(),
        source=_source(first),
        called_back=called_back,
        folder=folder,
        packages="",
        devices=None,
        files={path: _stat(path) for path in request["files"]},
        token=token,
        token_read=token_read,
        free_bytes=_free_bytes(request["run_folder"]),
        ports=_free_ports(2),
    )
    about_child.join()
    reason = child.get("reason", "")
    facts["packages"] = child.get("packages", reason)
    facts["devices"] = child.get("devices", reason) if request["devices"] else None
    return facts


def _ask_child(request: Request) -> dict[str, Any]:
    """The versions and devices that a rank would see."""
    what = "devices" if request["devices"] else "versions"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, what, str(_CHILD_SECONDS)],
            cwd=request["folder"] if os.path.isdir(request["folder"]) else None,
            env={**os.environ, **request["environment"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return {"reason": str(error)}
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            facts.update(json.loads(line[1:]))
    if done.returncode == -signal.SIGALRM:
        facts["reason"] = f"importing the packages took more than {_CHILD_SECONDS} s"
    elif done.returncode:
        facts["reason"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return facts


def _resolve(name: str) -> list[str] | str:
    try:
        entries = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        return str(error)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def _source(first: list[str] | str) -> str:
    """The address from which this host sends to the first host."""
    if isinstance(first, str):
        return first
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((first[0], 9))  # this sends nothing and only looks up the route
            return str(probe.getsockname()[0])
    except OSError as error:
        return str(error)


def _interfaces() -> dict[str, list[str]]:
    """The IPv4 addresses of each interface, also secondary ones (SIOCGIFCONF of netdevice(7))."""
    entry_bytes, most_entries = 40, 256  # struct ifreq on 64-bit Linux
    buffer = array.array("B", bytes(entry_bytes * most_entries))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        place = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
        used_bytes = struct.unpack("iL", fcntl.ioctl(any_socket, 0x8912, place))[0]
    addresses: dict[str, list[str]] = {}
    for start in range(0, used_bytes, entry_bytes):
        label = buffer[start : start + 16].tobytes().split(b"\0")[0].decode()
        address = socket.inet_ntoa(buffer[start + 20 : start + 24].tobytes())
        addresses.setdefault(label.split(":")[0], []).append(address)
    return addresses


def _call_back(request: Request) -> list[str]:
    """The addresses at which the command line answered with its word, in the order of the request."""
    worked: dict[str, bool] = {}

    def attempt(address: str) -> None:
        try:
            with socket.create_connection((address, request["call_back_port"]), _CALL_BACK_SECONDS) as connection:
                connection.settimeout(_CALL_BACK_SECONDS)
                with connection.makefile() as stream:
                    worked[address] = stream.readline().strip() == request["call_back_word"]
        except (OSError, ValueError):
            worked[address] = False

    attempts = [threading.Thread(target=attempt, args=(address,)) for address in request["call_back"]]
    for thread in attempts:
        thread.start()
    for thread in attempts:
        thread.join()
    return [address for address in request["call_back"] if worked[address]]


def _stat(path: str) -> list[int] | str:
    try:
        with open(path, "rb") as file:  # ranks must be able to read the file, not only to see it
            stat = os.fstat(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return [stat.st_size, int(stat.st_mtime)]


def _token(request: Request) -> tuple[str | None, bool]:
    """The text of the token of this host, and whether it could be read and removed; (reason, False) if not."""
    folder, name = request["run_folder"], request["token"]
    if folder is None or name is None:
        return None, False
    path = os.path.join(folder, name)
    deadline = time.monotonic() + _TOKEN_SECONDS
    while True:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            os.unlink(path)
            return text, True
        except FileNotFoundError:
            if time.monotonic() > deadline or not os.path.isdir(folder):
                return ("not the same folder" if os.path.isdir(folder) else "no such folder"), False
            time.sleep(0.2)
        except OSError as error:
            return error.strerror or str(error), False


def _free_bytes(folder: str | None) -> int:
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free if folder else 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
