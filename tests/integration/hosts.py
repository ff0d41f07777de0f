"""Real separate hosts on one machine: a network, a process table, a host name, mounts and an sshd for each.

Every host is one process 1 in namespaces of its own; the file system is shared, as on a cluster, but for `/run`,
`/dev/shm` and what a test binds over it. A module of tests makes its hosts once, and `reset` takes back between two
tests what the first did to them. The wires and the bridge live in namespaces too, so no address and no
interface appears on the machine, and no subnet can clash with its own.
Process 1 reads a pipe that only the test holds. When the test ends, in whatever way, the pipe closes, process 1 ends,
and the kernel kills the rest of the host and drops its mounts and interfaces. Namespaces with names (`ip netns add`)
would outlive a killed test, and the next would have to find and remove them.
"""

import os
import shutil
import signal as signals
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from tests.integration import hosts_files
from tests.integration.cli import Finished, wait_until

__all__ = ["Host", "cluster", "kill", "require", "reset", "send_signal"]

_COMMANDS = ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "pdsh", "mpirun", "pkill")
_SERVICES = {"sshd", "munged", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"}  # of a host, not of a job
_START_SECONDS = 30.0  # of what takes a tenth; the machine may be busy


@dataclass(frozen=True, slots=True)
class Host:
    """One host; `init` is its process 1 as this machine counts, `folder` is its `/run/host`.

    `files` are what that folder held at first, by name, and `bound` where a test has bound another folder since.
    """

    name: str
    address: str
    folder: Path
    init: int
    files: Mapping[str, str]
    bound: list[Path] = field(default_factory=list)

    def command(self, command: Sequence[str], cwd: Path = Path("/")) -> list[str]:
        """The command line that runs `command` on this host."""
        enter = ["nsenter", f"--target={self.init}", "--net", "--uts", "--mount", "--pid", "--"]
        return [*enter, "env", "-C", str(cwd), *command]  # `nsenter --wd` would show the folder under the host's mounts

    @contextmanager
    def started(
        self, command: Sequence[str], cwd: Path = Path("/"), environment: Mapping[str, str] | None = None
    ) -> Iterator["subprocess.Popen[str]"]:
        """A running command with both streams piped; it and its children are killed at the end.

        `Popen.send_signal` would reach `nsenter` instead of the command: see `send_signal`.
        """
        process = subprocess.Popen(
            self.command(command, cwd),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    for left in psutil.Process(process.pid).children(recursive=True):
                        kill(left)

    def run(
        self,
        command: Sequence[str],
        cwd: Path = Path("/"),
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> Finished:
        """The command from start to end; raises `subprocess.TimeoutExpired`."""
        with self.started(command, cwd, environment) as process:
            out, err = process.communicate(timeout=timeout_seconds)
        return Finished(process.returncode, out, err)

    def check(self, *command: str) -> str:
        """What the command prints; it must succeed."""
        finished = self.run(command)
        assert finished.code == 0, f"{self.name}: {command}: {finished}"
        return finished.out

    def processes(self, word: str = "") -> list[psutil.Process]:
        """What lives on this host and is no service of it, whoever started it; with `word` in its command line."""
        return [
            process
            for process in self._living()
            if process.info["name"] not in _SERVICES and word in " ".join(process.info["cmdline"] or ())
        ]

    def services(self, name: str) -> list[psutil.Process]:
        """The living processes of one service (`sshd`, `slurmd`, ...), sessions included."""
        return [process for process in self._living() if process.info["name"] == name]

    def _living(self) -> list[psutil.Process]:
        """All but process 1; `info` says what each was when it was seen, for it may have ended since."""
        own = _pid_namespace(self.init)
        assert own is not None, f"{self.name} is gone"
        return [
            process
            for process in psutil.process_iter(["name", "cmdline", "status"])
            if _pid_namespace(process.pid) == own
            and process.pid != self.init
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def link(self, state: Literal["up", "down"]) -> None:
        """Plug its network cable in or out; connections do not learn of it."""
        subprocess.run(
            ["nsenter", f"--target={self.init}", "--net", "ip", "link", "set", "eth0", state],
            check=True,
        )

    def bind(self, source: Path, target: Path) -> None:
        """Show `source` at `target` (both exist, both folders or both files) on this host only."""
        self.check("mount", "--bind", str(source), str(target))
        self.bound.append(target)

    def start_sshd(self) -> None:
        """Returns when it listens."""
        pid_file = self.folder / "sshd.pid"
        pid_file.unlink(missing_ok=True)
        self.check(str(shutil.which("sshd")), "-f", "/run/host/sshd_config", "-E", "/run/host/sshd.log")
        wait_until(pid_file.exists, f"sshd of {self.name}", _START_SECONDS)  # written once it listens

    def stop_sshd(self, *, sessions_too: bool = False) -> None:
        """Kill the one that listens; with `sessions_too` cut its open sessions, whose commands may live on."""
        for process in self.services("sshd"):
            if sessions_too or "[listener]" in " ".join(process.info["cmdline"] or ()):
                kill(process)

    def faketime(self, seconds: float) -> None:
        """Put the clock off by so much, for all that is started through ssh from now on; 0 sets it right again."""
        (self.folder / "sshd_config").write_text(hosts_files.sshd_config(seconds))
        self.stop_sshd()
        self.start_sshd()


def send_signal(process: "subprocess.Popen[str]", number: signals.Signals) -> None:
    """To the command of `Host.started` itself."""
    (command,) = psutil.Process(process.pid).children()
    command.send_signal(number)


def kill(process: psutil.Process) -> None:
    """SIGKILL, and wait until it is gone, or dead and only its parent has yet to notice."""
    with suppress(psutil.NoSuchProcess):
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, f"the end of {process}", _START_SECONDS)


def require(commands: Sequence[str], packages: str) -> None:
    """Fail, saying what this machine lacks."""
    missing = [command for command in commands if shutil.which(command) is None]
    if os.geteuid() != 0 or missing:
        raise RuntimeError(
            f"hosts in namespaces need root (this is user {os.geteuid()}) and the Debian packages {packages}; "
            f"missing commands: {', '.join(missing) or 'none'}"
        )


@contextmanager
def cluster(folder: Path, names: Sequence[str] = ("alpha", "beta")) -> Iterator[dict[str, Host]]:
    """Hosts that reach one another by name, by ssh without a prompt; their files go below `folder`.

    The first is as good as any for starting a job. All `iproute2` and `ssh` settings of this machine stay as they are.

    Raises:
        RuntimeError: this machine cannot do it, and why.
    """
    require(_COMMANDS, "openssh-server openssh-client pdsh iproute2 openmpi-bin faketime procps")
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}
    files = hosts_files.write(folder, addresses)
    with ExitStack() as stack:
        switch = stack.enter_context(_init(["unshare", "--net"], hosts_files.SWITCH, folder / "switch.log"))
        hosts = {}
        for name, address in addresses.items():
            own = folder / name
            unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            outer = stack.enter_context(_init(unshare, hosts_files.HOST, own / "init.log", name, str(own)))
            (inner,) = psutil.Process(outer).children()
            hosts[name] = Host(name, address, own, inner.pid, files[name])
            _plug_in(hosts[name], switch)
            hosts[name].start_sshd()
        yield hosts


def reset(hosts: Mapping[str, Host]) -> None:
    """Make the hosts what they were at first: their files, mounts, routes and wires, and nothing runs but a new sshd.

    Daemons of other services live on.
    """
    for host in hosts.values():
        host.stop_sshd(sessions_too=True)
        for process in host.processes():
            kill(process)
        while host.bound:
            host.check("umount", str(host.bound.pop()))
        for name, text in host.files.items():
            (host.folder / name).write_text(text)
        host.check("ip", "route", "flush", "table", "main")
        host.link("down")
        host.link("up")  # which sets the route to the others again
        host.start_sshd()


@contextmanager
def _init(unshare: Sequence[str], script: str, log: Path, *arguments: str) -> Iterator[int]:
    """A shell in new namespaces, up to the end of the block; the id of what was started."""
    file = log.with_suffix(".sh")  # not `bash -c`: a test's `pkill -f WORD` must not find its word in here
    file.write_text(script)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*unshare, "bash", str(file), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the test, whose end ends this
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"no {' '.join(unshare)} here: {log.read_text()}")
        yield process.pid
    finally:
        process.stdin.close()
        try:
            process.wait(_START_SECONDS)
        finally:
            process.kill()
            process.stdout.close()


def _plug_in(host: Host, switch: int) -> None:
    """A wire from the bridge to the host's `eth0`."""
    in_switch = ["nsenter", f"--target={switch}", "--net", "ip", "link"]
    port = f"to-{host.name}"
    wire = ["add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.init)]
    for arguments in (wire, ["set", port, "master", "bridge0"], ["set", port, "up"]):
        subprocess.run([*in_switch, *arguments], check=True)
    host.check("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
    host.check("ip", "link", "set", "lo", "up")
    host.link("up")


def _pid_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has just ended
        return None
