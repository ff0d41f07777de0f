"""Options that several commands have."""

from typing import Annotated

import typer

__all__ = ["AsJson", "Devices", "Exclude", "Include", "Launcher", "Overrides", "Run"]

Run = Annotated[str, typer.Argument(help="A run TOML, the name of a shipped recipe, or the folder of a run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a config key; VALUE is TOML, or a string; ds.KEY reaches the JSON."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on the last line.")]
Devices = Annotated[int | None, typer.Option(help="Ranks on this machine (default: every GPU, or one CPU rank).")]
Launcher = Annotated[
    str | None, typer.Option(help="pdsh, openmpi or slurm (default: pdsh, unless this machine is alone).")
]
Include = Annotated[str, typer.Option(help="Take these hosts only: NAME[:SLOT,...][@NAME...].")]
Exclude = Annotated[str, typer.Option(help="Leave these out, in the same way.")]
