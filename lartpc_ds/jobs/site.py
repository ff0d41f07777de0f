"""The site of a job: this machine, or the hosts of a hostfile.

The hosts that a filter leaves are written to a hostfile of the job, so that filters mean the same to every launcher.
Only a choice of devices inside a host needs `--include` of DeepSpeed, which works with pdsh alone.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lartpc_ds.config.launch import LaunchConfig
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import Host, read, select
from lartpc_ds.layout import Layout
from lartpc_ds.training.network import is_this_machine

__all__ = [
    "LAUNCHERS",
    "Site",
    "apply_file_locking",
    "crossings",
    "first_slots",
    "forwarded",
    "here",
    "of_hostfile",
    "placement_advice",
    "with_environment",
]

LAUNCHERS = ("pdsh", "openmpi", "slurm")
_LOOPBACK = "127.0.0.1"
_LOCKING_VARIABLE = "HDF5_USE_FILE_LOCKING"
_LOCKING = {"on": "TRUE", "off": "FALSE", "best-effort": "BEST_EFFORT"}


@dataclass(frozen=True, slots=True)
class Site:
    """Where a job runs; the address and port of rank 0, and the addresses of this machine, come from the preflight."""

    hosts: tuple[Host, ...]
    """The hosts in the order of their ranks."""
    launcher: str | None = None
    """The program that starts ranks on the hosts; None on this machine alone."""
    master_addr: str = _LOOPBACK
    master_port: int = 0
    addresses: tuple[str, ...] = (_LOOPBACK,)
    """The addresses at which the hosts reach this machine."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set for every rank."""
    job: str = field(default_factory=lambda: secrets.token_hex(4))
    """A name that tells this job from others of the same run."""

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return sum(host.slots for host in self.hosts)

    @property
    def devices_needed(self) -> int:
        """The number of devices that the fullest host must have: one more than the highest number of a device."""
        return max(max(host.devices) for host in self.hosts) + 1

    @property
    def rank_hosts(self) -> list[str]:
        """The name of the host of each rank."""
        return [host.name for host in self.hosts for _ in range(host.slots)]

    @property
    def chooses_devices(self) -> bool:
        """Whether a filter leaves other devices of a host than its first ones."""
        return any(host.devices != tuple(range(host.slots)) for host in self.hosts)


def here(devices: int) -> Site:
    """A site of this many ranks on this machine."""
    return Site((Host("localhost", tuple(range(devices))),))


def of_hostfile(path: Path, include: str, exclude: str, launcher: str | None) -> Site:
    """The site of the hosts that filters leave of a hostfile; without a launcher if that is only this machine.

    Raises:
        UserError: the launcher is unknown, the file or filter is bad, or the launcher cannot follow it.
    """
    if launcher is not None and launcher not in LAUNCHERS:
        raise UserError(
            f"--launcher {launcher}: must be one of {', '.join(LAUNCHERS)}; no other launcher is tested here"
        )
    hosts = select(read(path), include, exclude)
    if launcher is None and len(hosts) == 1 and is_this_machine(hosts[0].name):
        return Site(hosts)
    site = Site(hosts, launcher or "pdsh")
    option = f"--include {include}" if include else f"--exclude {exclude}"
    if site.chooses_devices and site.launcher != "pdsh":
        raise UserError(
            f"{option}: chooses devices inside a host, which --launcher {site.launcher} ignores; name whole hosts, or "
            "take --launcher pdsh"
        )
    _check_equal_slots(site)
    return site


def _check_equal_slots(site: Site) -> None:
    slots = {host.name: host.slots for host in site.hosts}
    if site.launcher == "slurm" and len(set(slots.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in slots.items())
        raise UserError(
            "--launcher slurm: srun starts the same number of ranks on every host, but the slots differ: "
            f"{listed}; give every host the same number in the hostfile, or take --launcher pdsh"
        )


def first_slots(site: Site, ranks: int) -> Site:
    """A site of the first so many slots, for a job of its own.

    Raises:
        UserError: the launcher starts the same number of ranks on every host, and these are not.
    """
    assert 0 < ranks <= site.world_size, (ranks, site)
    hosts: list[Host] = []
    for host in site.hosts:
        if devices := host.devices[: ranks - sum(taken.slots for taken in hosts)]:
            hosts.append(Host(host.name, devices))
    first = Site(tuple(hosts), site.launcher)
    _check_equal_slots(first)
    return first


def forwarded(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that decide which code and devices a rank sees; DeepSpeed forwards every PYTHON* by itself."""
    return {name: value for name, value in variables.items() if name.startswith("PYTHON") or name == "DS_ACCELERATOR"}


def with_environment(site: Site, launch: LaunchConfig) -> Site:
    """The site with the variables that the configuration gives to every rank.

    Raises:
        UserError: a variable to forward is not set here.
    """
    missing = [name for name in launch.forward if name not in os.environ]
    if missing:
        raise UserError(f"launch.forward: {', '.join(missing)} is not set here; set it, or remove it from the list")
    variables = {name: os.environ[name] for name in launch.forward}
    if launch.hdf5_file_locking != "default":
        variables[_LOCKING_VARIABLE] = _LOCKING[launch.hdf5_file_locking]
    return replace(site, environment={**site.environment, **variables, **launch.environment})


def apply_file_locking(site: Site) -> None:
    """Apply the choice of HDF5's file locking to this process, which reads the files before any rank does."""
    if (chosen := site.environment.get(_LOCKING_VARIABLE)) is not None:
        os.environ[_LOCKING_VARIABLE] = chosen


def crossings(layout: Layout, rank_hosts: list[str]) -> dict[tuple[str, str], int]:
    """The number of pairs of neighbouring tiles whose halos cross from one host to another, by pair of hosts."""
    crossing: dict[tuple[str, str], int] = {}
    for rank in range(layout.world_size):
        at = layout.coordinates(rank)
        for down, right in ((0, 1), (1, 0)):
            row, col = at.row + down, at.col + right
            if row < layout.rows and col < layout.cols:
                pair = (rank_hosts[rank], rank_hosts[layout.rank(at._replace(row=row, col=col))])
                if pair[0] != pair[1]:
                    crossing[pair] = crossing.get(pair, 0) + 1
    return crossing


def placement_advice(layout: Layout, site: Site) -> str | None:
    """Advice by which no tile group would straddle hosts; None where there is no such way."""
    tiles = layout.tiles
    if all(host.slots % tiles == 0 for host in site.hosts):
        return None
    kept = {host.name: host.slots - host.slots % tiles for host in site.hosts}
    if not any(kept.values()):
        most = max(host.slots for host in site.hosts)
        return f"no host has {tiles} slots for all tiles of an event, the largest has {most}" if most > 1 else None
    chosen = "@".join(f"{name}:{','.join(map(str, range(slots)))}" for name, slots in kept.items() if slots)
    return f"none would with a multiple of {tiles} slots on each host: --include {chosen}"
