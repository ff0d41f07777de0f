"""What the hosts of `tests.integration.hosts` begin with, and find in `/etc/hosts`, `/etc/ssh` and `/run/host`.

Each host has its files, so that a test can spoil one: forget a name, change a key, deny a login.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

__all__ = ["HOST", "SWITCH", "sshd_config", "write"]

# Process 1 of a host, given its name and its folder.
HOST = """
set -e
hostname "$1"
mount -t sysfs sysfs /sys  # shows the interfaces of this network only
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
if [ -e /etc/resolv.conf ]; then mount --bind "$2/resolv.conf" /etc/resolv.conf; fi
if [ -d ~/.ssh ]; then mount -t tmpfs tmpfs ~/.ssh; fi  # the user's own keys and settings stay out
cd "$2"
mount -t tmpfs tmpfs /run
mkdir /run/host /run/sshd /run/munge
mount --bind . /run/host
cd /
trap '' HUP INT TERM
echo ready
while read -r _; do :; done  # until the test ends; bash reaps the orphans meanwhile
"""

# The network between them, as first process: a bridge.
SWITCH = """
set -e
ip link add bridge0 type bridge
ip link set bridge0 up
echo ready
read -r _
"""

_SSH_CONFIG = """\
Host *
    IdentityFile /run/host/id_ed25519
    IdentitiesOnly yes
    GlobalKnownHostsFile /run/host/known_hosts
    UserKnownHostsFile none
    UpdateHostKeys no
"""

_SSHD_CONFIG = """\
ListenAddress 0.0.0.0
HostKey /run/host/host_key
AuthorizedKeysFile /run/host/authorized_keys
PidFile /run/host/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PrintMotd no
"""


def write(folder: Path, addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Make one folder per host below `folder`; returns the text of every file, by host and name."""
    user_key = _key(folder / "id_ed25519")
    host_keys = {name: _key(folder / f"{name}.key") for name in addresses}
    files = {
        "hosts": "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **addresses}.items()),
        "resolv.conf": "",  # no name server: an unknown name fails at once
        "ssh_config": _SSH_CONFIG,
        "sshd_config": sshd_config(0),
        "id_ed25519": (folder / "id_ed25519").read_text(),
        "authorized_keys": user_key,
        "known_hosts": "".join(f"{name},{addresses[name]} {key}" for name, key in host_keys.items()),
    }
    all_files = {name: {**files, "host_key": (folder / f"{name}.key").read_text()} for name in addresses}
    for name, files_of_host in all_files.items():
        (folder / name).mkdir()
        for file, text in files_of_host.items():
            (folder / name / file).touch(mode=0o600)
            (folder / name / file).write_text(text)
    return all_files


def sshd_config(clock_off_seconds: float) -> str:
    """The configuration of a host's sshd, whose sessions see a clock that is off by so much."""
    if not clock_off_seconds:
        return _SSHD_CONFIG
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        raise RuntimeError("a false clock needs libfaketime: apt-get install faketime")
    # waiting is measured with the monotonic clock, which no time server moves either
    off = f"FAKETIME={clock_off_seconds:+g} FAKETIME_DONT_FAKE_MONOTONIC=1"
    return f"{_SSHD_CONFIG}SetEnv LD_PRELOAD={libraries[0]} {off}\n"


def _key(file: Path) -> str:
    """A new key pair; the public half, as one line of `authorized_keys`."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", file.name, "-f", str(file)], check=True)
    return file.with_name(f"{file.name}.pub").read_text()
