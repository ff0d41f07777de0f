"""Ask all hosts, and this machine, the same questions at once.

While they are asked, this machine listens on a port, so that they can show that they reach it; and the run folder holds
one file a host with a random text, which the host must read and remove: names and sizes of a folder prove nothing.
"""

import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from lartpc_ds.jobs.hosts.faults import Fault, fault_of
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.hosts.reach import Reach, run_python
from lartpc_ds.jobs.preflight.preflight_checks import Here, Report, check_first_line, clock_skew_seconds
from lartpc_ds.jobs.preflight.probe import Answer, Request, script
from lartpc_ds.training.network import own_addresses

__all__ = ["THIS_MACHINE", "Need", "ask_all"]

THIS_MACHINE = "this machine"
_PROBE_SECONDS = 100.0  # more than the probe gives itself


@dataclass(frozen=True, slots=True)
class Need:
    """What a job needs from every host."""

    data_files: tuple[str, ...] = ()  # absolute paths
    run_folder: Path | None = None  # None: not looked at
    environment: Mapping[str, str] = field(default_factory=dict)  # of the ranks, as the launcher will forward it


class _Local:
    """This machine, without a connection."""

    name = "python"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        return list(remote)


def ask_all(
    hosts: Sequence[Host], first: str, reach: Reach, need: Need, pool: Executor
) -> tuple[Here | None, dict[str, Report], list[Fault]]:
    """What each host said, by name, and why some said nothing; Here is None if this machine itself is not well."""
    with ExitStack() as stack:
        try:
            tokens = stack.enter_context(_tokens(hosts, need.run_folder))
        except OSError as error:
            why = f"{need.run_folder}: {error.strerror}"
            fix = "make it, with the right to write in it, or choose another"
            return None, {}, [Fault(THIS_MACHINE, "run folder", why, fix)]
        port, word = stack.enter_context(_listener())
        request = Request(
            first_host=first,
            folder=str(Path.cwd()),
            environment=dict(need.environment),
            files=list(need.data_files),
            run_folder=None if need.run_folder is None else str(need.run_folder),
            token=None,
            call_back=list(own_addresses()),
            call_back_port=port,
            call_back_word=word,
            devices=True,
        )
        local = pool.submit(_ask, _Local(), THIS_MACHINE, Request(**{**request, "devices": False, "call_back": []}))
        asked = {
            host.name: pool.submit(_ask, reach, host.name, Request(**{**request, "token": tokens.get(host.name)}))
            for host in hosts
        }
        said = {name: future.result() for name, future in asked.items()}
        own = local.result()
    reports = {name: found for name, found in said.items() if isinstance(found, Report)}
    faults = [found for found in said.values() if isinstance(found, Fault)]
    if isinstance(own, Fault):
        return None, reports, [own, *faults]
    here, missing = _here(own.answer, need, request["folder"], tokens)
    return here, reports, [*missing, *faults]


def _ask(reach: Reach, host: str, request: Request) -> Report | Fault:
    outcome = run_python(reach, host, script(request), _PROBE_SECONDS)
    found = outcome.answers()
    if not found:
        return fault_of(reach, host, outcome)
    arrival, first = found[0]
    if len(found) == 1:
        fault = next(check_first_line(host, first["python"]), None)
        last = (outcome.err.strip().splitlines() or [f"exit code {outcome.code}"])[-1]
        return fault or Fault(host, "probe", f"the probe broke off: {last}", f"try by hand: ssh {host} hostname")
    skew_seconds = clock_skew_seconds(first["time"], outcome.started, arrival)
    return Report(first["python"], skew_seconds, cast(Answer, found[1][1]))


def _here(own: Answer, need: Need, folder: str, tokens: Mapping[str, str]) -> tuple[Here, list[Fault]]:
    """This machine's own answer, to compare with."""
    faults = [
        Fault(THIS_MACHINE, "data", f"{path}: {found}", "correct data.files, or mount the folder")
        for path, found in own["files"].items()
        if isinstance(found, str)
    ]
    if isinstance(own["packages"], str):
        faults.append(Fault(THIS_MACHINE, "versions", own["packages"], "install the package again"))
    return Here(
        packages={} if isinstance(own["packages"], str) else own["packages"],
        files={path: (found[0], found[1]) for path, found in own["files"].items() if not isinstance(found, str)},
        run_folder=None if need.run_folder is None else str(need.run_folder),
        tokens=tokens,
        folder=folder,
    ), faults


@contextmanager
def _tokens(hosts: Sequence[Host], folder: Path | None) -> Iterator[dict[str, str]]:
    """A file in the run folder for each host, whose name is its text; nothing is left of them."""
    tokens = {} if folder is None else {host.name: f".preflight-{secrets.token_hex(8)}" for host in hosts}
    try:
        for token in tokens.values():
            assert folder is not None
            (folder / token).write_text(token)
        yield tokens
    finally:
        for token in tokens.values():
            assert folder is not None
            with suppress(OSError):
                (folder / token).unlink(missing_ok=True)


@contextmanager
def _listener() -> Iterator[tuple[int, str]]:
    """A port of this machine that says a word to whoever calls: (port, word)."""
    word = secrets.token_hex(16)
    with socket.create_server(("", 0), backlog=1024) as server:
        thread = threading.Thread(target=_say_to_callers, args=(server, word), daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], word
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes accept, which close would not
            thread.join()


def _say_to_callers(server: socket.socket, word: str) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # shut down
            return
        with connection, suppress(OSError):
            connection.sendall(f"{word}\n".encode())
