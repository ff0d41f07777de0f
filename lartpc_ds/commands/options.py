"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Devices",
    "Exclude",
    "Hostfile",
    "Include",
    "Launcher",
    "MeasuredHardware",
    "Overrides",
    "RunArgument",
]

RunArgument = Annotated[str, typer.Argument(help="A run TOML, the name of a shipped recipe, or the folder of a run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a config key. VALUE is TOML, or else a string; ds.KEY reaches the DeepSpeed JSON.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line.")]
Devices = Annotated[
    int | None, typer.Option(help="Number of ranks on this machine (default: one per GPU, or one CPU rank).")
]
Hostfile = Annotated[
    Path | None, typer.Option(help="Run on the hosts of this file, which has a line NAME slots=N per host.")
]
Launcher = Annotated[
    str | None, typer.Option(help="pdsh, openmpi or slurm (default: pdsh, unless this machine is the only host).")
]
Include = Annotated[str, typer.Option(help="Use only these hosts: NAME[:SLOT,...][@NAME...].")]
Exclude = Annotated[str, typer.Option(help="Leave out these hosts, written like those of --include.")]
MeasuredHardware = Annotated[
    str | None,
    typer.Option("--hardware", help="A file of `calibrate`, or a preset (default: measure this machine first)."),
]
