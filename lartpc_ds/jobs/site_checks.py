"""The options about hosts, and the site that they lead to, whose hosts have said that they can take the job."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.files import expand
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.preflight.preflight_report import ask_hosts
from lartpc_ds.jobs.site import Site, here, of_hostfile
from lartpc_ds.jobs.supervise.command import (
    check_accelerator,
    check_count,
    check_devices,
    default_devices,
    write_hostfile,
)

__all__ = ["HostOptions", "asked_site", "reached_site"]


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The options of `train` and `evaluate` that say where ranks run."""

    devices: int | None = None
    """The number of ranks on this machine."""
    hostfile: Path | None = None
    """The hosts to use instead of this machine."""
    launcher: str | None = None
    include: str = ""
    """The hosts to take."""
    exclude: str = ""
    """The hosts to leave out."""

    @property
    def source(self) -> str:
        """The option that gives the number of ranks, in words for a message."""
        return "--devices" if self.hostfile is None else f"the number of slots in --hostfile {self.hostfile}"


def asked_site(options: HostOptions, ds: DeepSpeedConfig) -> Site:
    """The site that the options ask for.

    Raises:
        UserError: options have no effect or contradict each other, the hostfile is bad, or this machine has too few
            devices.
    """
    if options.hostfile is None:
        given = {"--launcher": options.launcher, "--include": options.include, "--exclude": options.exclude}
        idle = [option for option, value in given.items() if value]
        if idle:
            raise UserError(f"{', '.join(idle)}: without effect on this machine alone; give --hostfile FILE as well")
        devices = default_devices() if options.devices is None else options.devices
        check_devices(devices, ds)
        return here(devices)
    if options.devices is not None:
        raise UserError(
            f"--devices {options.devices}: with --hostfile the ranks are its slots; choose among them with --include "
            "or --exclude, and leave --devices out"
        )
    site = of_hostfile(options.hostfile, options.include, options.exclude, options.launcher)
    if site.launcher is None:
        check_count(site.devices_needed, f"{options.hostfile}: {site.hosts[0].name} with {site.devices_needed} slots")
        check_devices(site.world_size, ds)
    return site


def reached_site(
    site: Site, config: RunConfig, ds: DeepSpeedConfig, folder: RunFolder, logs: Path, console: Console
) -> Site:
    """The site, completed with what its hosts answer; writes the hostfile of the job into `logs`.

    Raises:
        UserError: not all of the hosts can take the job; the reasons were printed to the console.
    """
    if site.launcher is None:
        return site
    write_hostfile(site, logs)
    files = expand(config.data.files) if config.data.target is None else []
    findings = ask_hosts(site, files, folder.path, console)
    if not findings.ok:
        raise UserError("the hosts cannot take the job, for the reasons listed above; no rank was started")
    assert findings.master_addr is not None and findings.master_port is not None, (
        "a preflight that succeeds has found both"
    )
    check_accelerator(findings.accelerator, ds)
    return replace(
        site,
        master_addr=findings.master_addr,
        master_port=findings.master_port,
        addresses=findings.addresses,
        environment={"DS_ACCELERATOR": findings.accelerator, **site.environment},
    )
