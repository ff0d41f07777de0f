"""`lartpc-ds hostfile check`: the hostfile by itself, then the preflight of the hosts that it names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lartpc_ds.errors import UserError
from lartpc_ds.launch.hostfile import read, select
from lartpc_ds.launch.preflight import Need, preflight
from lartpc_ds.launch.preflight_report import print_findings
from lartpc_ds.launch.reach import reach_for

__all__ = ["CheckRequest", "check"]

_LAUNCHERS = ("pdsh", "openmpi", "slurm")


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """The command line of `hostfile check`."""

    file: Path
    include: str = ""
    exclude: str = ""
    launcher: str = "pdsh"
    run: str | None = None
    run_dir: Path | None = None


def check(request: CheckRequest, console: Console) -> int:
    """Check and report; exit code 0 if a job may start, 2 if not.

    Raises:
        UserError: the hostfile, a filter, the launcher or the run is at fault by itself.
    """
    if request.launcher not in _LAUNCHERS:
        raise UserError(f"--launcher {request.launcher!r}: must be one of: {', '.join(_LAUNCHERS)}")
    hosts = select(read(request.file), request.include, request.exclude)
    run_folder = (request.run_dir or Path.cwd()).absolute()
    need = Need(_data_files(request.run), run_folder, _forwarded(os.environ))
    findings = preflight(hosts, reach_for(request.launcher), need)
    print_findings(console, findings)
    return 0 if findings.ok else 2


def _data_files(run: str | None) -> tuple[str, ...]:
    """The event files of a run; none if it makes its own or takes a user's images."""
    if run is None:
        return ()
    from lartpc_ds import recipes  # imported here: it takes seconds, and most checks are of hosts alone
    from lartpc_ds.data.files import expand
    from lartpc_ds.prepare import absolute_paths

    config = absolute_paths(recipes.load(run)[0], Path.cwd())
    return tuple(str(path) for path in expand(config.data.files)) if config.data.files else ()


def _forwarded(variables: Mapping[str, str]) -> dict[str, str]:
    """What decides which code and devices a rank sees: DeepSpeed forwards every PYTHON*."""
    return {name: value for name, value in variables.items() if name.startswith("PYTHON") or name == "DS_ACCELERATOR"}
