"""Options that several commands have."""

from typing import Annotated

import typer

__all__ = ["AsJson", "Overrides"]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a config key; VALUE is TOML, or a string; ds.KEY reaches the JSON."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on the last line.")]
