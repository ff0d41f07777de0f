"""`lartpc-ds hostfile check`: check a hostfile, and then the hosts that it names."""

from pathlib import Path

from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.data.files import expand
from lartpc_ds.jobs.preflight.preflight_report import ask_hosts
from lartpc_ds.jobs.site import of_hostfile, with_environment
from lartpc_ds.jobs.supervise.command import check_count
from lartpc_ds.training.prepare import absolute_paths

__all__ = ["check"]


def check(
    file: Path,
    console: Console,
    *,
    include: str = "",
    exclude: str = "",
    launcher: str | None = None,
    run: str | None = None,
    run_dir: Path | None = None,
) -> int:
    """Check and report; returns exit code 0 if a job may start on the hosts of `file`, 2 if not.

    Raises:
        UserError: the hostfile, a filter, the launcher or the run is at fault itself.
    """
    site = of_hostfile(file, include, exclude, launcher)
    files: list[Path] = []
    if run is not None:
        config = absolute_paths(recipes.load(run)[0], Path.cwd())
        site = with_environment(site, config.launch)
        # a run without files simulates its events, or has images of the user
        files = expand(config.data.files) if config.data.files else []
    if site.launcher is None:
        check_count(site.devices_needed, f"{file}: {site.hosts[0].name} with {site.devices_needed} slots")
        console.print(f"{site.hosts[0].name} is this machine and the only host, so there is no host to ask")
        return 0
    return 0 if ask_hosts(site, files, (run_dir or Path.cwd()).absolute(), console).ok else 2
