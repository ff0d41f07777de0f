"""What one host says of itself: sent over a connection's standard input to any Python 3, stdlib only.

The host may lack our package, or have another: so this text must not import it. Only the child that it starts does, in
the folder and with the variables that the ranks will have. `script` makes the text; its first line answers at once,
with the clock and the version, before anything that could fail or take long; the second line is an `Answer`.
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
_TOKEN_SECONDS = 5.0  # a network file system may show a new file late
_CHILD_SECONDS = 75  # torch's first import from a cold network file system is slow


class Request(TypedDict):
    """What to find out."""

    first_host: str
    folder: str  # current folder of the ranks
    environment: dict[str, str]  # variables of the ranks
    files: list[str]
    run_folder: str | None
    token: str | None  # name of a file in the run folder, for this host alone
    call_back: list[str]  # addresses at which the command line may listen
    call_back_port: int
    call_back_word: str  # what it says there
    devices: bool  # import DeepSpeed and count?


class Answer(TypedDict):
    """What was found; a text in place of a value is the reason why there is none."""

    first_addresses: list[str] | str
    interfaces: dict[str, list[str]]
    source: str  # own address towards the first host, or the reason
    called_back: list[str]
    folder: str | None
    packages: dict[str, str] | str
    devices: dict[str, Any] | str | None  # kind, count, backend
    files: dict[str, list[int] | str]  # size in bytes, mtime in seconds
    token: str | None  # the token's text, or the reason why not
    token_read: bool
    free_bytes: int
    ports: list[int]


_CHILD = """
import json, os, signal, sys
signal.alarm(int(sys.argv[2]))  # it ends itself, whatever becomes of who waits for it
def say(name, value):
    print("@" + json.dumps({name: value}), flush=True)
import hashlib, importlib.metadata, pathlib
found = {}
try:
    import lartpc_ds
    root = pathlib.Path(lartpc_ds.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    found["lartpc_ds"] = lartpc_ds.__version__ + " (sources " + digest.hexdigest()[:8] + ")"
except ImportError as error:
    found["lartpc_ds"] = "missing: " + str(error)
for name in ("torch", "deepspeed"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = "missing"
say("packages", found)
if sys.argv[1] == "devices":
    from deepspeed.accelerator import get_accelerator
    accelerator = get_accelerator()
    kind = accelerator.device_name()
    count = len(os.sched_getaffinity(0)) if kind == "cpu" else accelerator.device_count()
    say("devices", {"kind": kind, "count": count, "backend": accelerator.communication_backend_name()})
"""


def script(request: Request) -> str:
    """The text to send: any Python 3 can read all but the quoted part."""
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
    """Do all the checks of one host; bounded in time."""
    child: dict[str, Any] = {}
    about_child = threading.Thread(target=lambda: child.update(_ask_child(request)))
    about_child.start()  # it takes seconds; the rest goes on beside it
    first = _resolve(request["first_host"])
    called_back = _call_back(request)
    token, token_read = _token(request)
    folder = None if os.path.isdir(request["folder"]) else "no such folder"
    found = Answer(
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
    found["packages"] = child.get("packages", reason)
    found["devices"] = child.get("devices", reason) if request["devices"] else None
    return found


def _ask_child(request: Request) -> dict[str, Any]:
    """Versions and devices, as a rank would see them."""
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
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            found.update(json.loads(line[1:]))
    if done.returncode == -signal.SIGALRM:
        found["reason"] = f"importing the packages took more than {_CHILD_SECONDS} s"
    elif done.returncode:
        found["reason"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return found


def _resolve(name: str) -> list[str] | str:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        return str(error)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _source(first: list[str] | str) -> str:
    """The address from which this host sends to the first host."""
    if isinstance(first, str):
        return first
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((first[0], 9))  # sends nothing, only looks up the route
            return str(probe.getsockname()[0])
    except OSError as error:
        return str(error)


def _interfaces() -> dict[str, list[str]]:
    """IPv4 addresses by interface, secondary ones included (SIOCGIFCONF of netdevice(7))."""
    entry_bytes, most = 40, 256  # struct ifreq on 64-bit Linux
    buffer = array.array("B", bytes(entry_bytes * most))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        place = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
        used = struct.unpack("iL", fcntl.ioctl(asked, 0x8912, place))[0]
    found: dict[str, list[str]] = {}
    for start in range(0, used, entry_bytes):
        label = buffer[start : start + 16].tobytes().split(b"\0")[0].decode()
        address = socket.inet_ntoa(buffer[start + 20 : start + 24].tobytes())
        found.setdefault(label.split(":")[0], []).append(address)
    return found


def _call_back(request: Request) -> list[str]:
    """The addresses at which the command line answered with its word, in the order given."""
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
        with open(path, "rb") as file:  # to be seen is not enough: ranks must read it
            found = os.fstat(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return [found.st_size, int(found.st_mtime)]


def _token(request: Request) -> tuple[str | None, bool]:
    """Text of this host's token, and whether it could be read and removed; (reason, False) if not."""
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
