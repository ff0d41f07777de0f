"""The command `scale`, which measures how the rate of a run grows with its ranks."""

from pathlib import Path
from typing import Annotated

import typer

from lartpc_ds.commands.options import Hostfile, Launcher, Overrides, RunArgument

__all__ = ["scale_app"]

scale_app = typer.Typer(rich_markup_mode=None)


@scale_app.command()
def scale(
    run: RunArgument,
    ranks: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Numbers of ranks (default: 1,2,4, as far as there are devices)."),
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="MODE,...", help="What more ranks share: data, tiles, pipe between commas, or all.")
    ] = "data",
    strong: Annotated[
        bool, typer.Option("--strong", help="Only with one global batch at every size (default: both).")
    ] = False,
    weak: Annotated[
        bool, typer.Option("--weak", help="Only with as many events per rank at every size (default: both).")
    ] = False,
    models: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Networks in place of model.name (default: the run's).")
    ] = None,
    hostfile: Hostfile = None,
    launcher: Launcher = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per repeat, after one that warms up.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Jobs per size; all sizes take turns.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for all results (default: runs/scale-<run>-<time>).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in --out.")] = False,
    overrides: Overrides = None,
) -> None:
    """Run the real job at several numbers of ranks, and write a table and plots of its weak and strong scaling."""
    from rich.console import Console

    from lartpc_ds.advise.scale.scale import ScaleRequest
    from lartpc_ds.advise.scale.scale import scale as run_study

    request = ScaleRequest(
        run,
        ranks=ranks,
        modes=mode,
        weak=weak,
        strong=strong,
        models=models,
        hostfile=hostfile,
        launcher=launcher,
        steps=steps,
        repeats=repeats,
        out=out,
        resume=resume,
        overrides=overrides or [],
    )
    raise typer.Exit(run_study(request, Console()))
