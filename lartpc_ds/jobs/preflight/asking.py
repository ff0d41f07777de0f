"""Ask all hosts, and this machine, the same questions at the same time.

Meanwhile this machine listens on a port, so that the hosts can prove that they reach it. The run folder has one file
per host with a random text, which the host must read and remove; that the folder has the right name there proves
nothing.
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
_PROBE_SECONDS = 100.0  # longer than the probe takes at most


@dataclass(frozen=True, slots=True)
class Need:
    """The things that a job needs from every host."""

    data_files: tuple[str, ...] = ()
    """The absolute paths of the files that ranks read."""
    run_folder: Path | None = None
    """The folder to which ranks write; None if it is not to be checked."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables of the ranks, as the launcher will forward them."""


class _Local:
    """The way to this machine, which needs no connection."""

    name = "python"

    def command(self, host: str, remote: Sequence[str]) -> list[str]:
        return list(remote)


def ask_all(
    hosts: Sequence[Host], first: str, reach: Reach, need: Need, pool: Executor
) -> tuple[Here | None, dict[str, Report], list[Fault]]:
    """The report of each host by name, and the faults of others; Here is None if this machine has a fault itself."""
    with ExitStack() as stack:
        try:
            tokens = stack.enter_context(_tokens(hosts, need.run_folder))
        except OSError as error:
            why = f"{need.run_folder}: {error.strerror}"
            fix = "make this folder, with the right to write in it, or choose another"
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
        replies = {name: future.result() for name, future in asked.items()}
        own = local.result()
    reports = {name: reply for name, reply in replies.items() if isinstance(reply, Report)}
    faults = [reply for reply in replies.values() if isinstance(reply, Fault)]
    if isinstance(own, Fault):
        return None, reports, [own, *faults]
    here, missing = _here(own.answer, need, request["folder"], tokens)
    return here, reports, [*missing, *faults]


def _ask(reach: Reach, host: str, request: Request) -> Report | Fault:
    outcome = run_python(reach, host, script(request), _PROBE_SECONDS)
    objects = outcome.answers()
    if not objects:
        return fault_of(reach, host, outcome)
    arrival, first = objects[0]
    if len(objects) == 1:
        fault = next(check_first_line(host, first["python"]), None)
        last = (outcome.err.strip().splitlines() or [f"exit code {outcome.code}"])[-1]
        return fault or Fault(host, "probe", f"the probe broke off: {last}", f"try by hand: ssh {host} hostname")
    skew_seconds = clock_skew_seconds(first["time"], outcome.started, arrival)
    return Report(first["python"], skew_seconds, cast(Answer, objects[1][1]))


def _here(own: Answer, need: Need, folder: str, tokens: Mapping[str, str]) -> tuple[Here, list[Fault]]:
    """The answer of this machine, with which the others are compared, and its faults."""
    faults = [
        Fault(THIS_MACHINE, "data", f"{path}: {stat}", "correct data.files, or mount the folder")
        for path, stat in own["files"].items()
        if isinstance(stat, str)
    ]
    if isinstance(own["packages"], str):
        faults.append(Fault(THIS_MACHINE, "versions", own["packages"], "install the package again"))
    return Here(
        packages={} if isinstance(own["packages"], str) else own["packages"],
        files={path: (stat[0], stat[1]) for path, stat in own["files"].items() if not isinstance(stat, str)},
        run_folder=None if need.run_folder is None else str(need.run_folder),
        tokens=tokens,
        folder=folder,
    ), faults


@contextmanager
def _tokens(hosts: Sequence[Host], folder: Path | None) -> Iterator[dict[str, str]]:
    """Put a file for each host into the run folder, whose text is its name, and remove all of them at the end."""
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
    """Listen on a port of this machine and send a word to every caller; gives (port, word)."""
    word = secrets.token_hex(16)
    with socket.create_server(("", 0), backlog=1024) as server:
        thread = threading.Thread(target=_say_to_callers, args=(server, word), daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], word
        finally:
            server.shutdown(socket.SHUT_RDWR)  # this wakes accept, which close does not
            thread.join()


def _say_to_callers(server: socket.socket, word: str) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # the server was shut down
            return
        with connection, suppress(OSError):
            connection.sendall(f"{word}\n".encode())
