"""The commands that answer before a device-hour is spent."""

from pathlib import Path
from typing import Annotated

import typer

from lartpc_ds.commands.options import AsJson, Devices, Overrides, Run

__all__ = ["plan_app"]

plan_app = typer.Typer(rich_markup_mode=None)


@plan_app.command()
def plan(
    run: Run,
    devices: Annotated[int, typer.Option(min=1, help="Of the whole job.")],
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Of one device, such as 40GiB.")] = None,
    per_node: Annotated[int | None, typer.Option(min=1, help="Devices of one machine (default: --hardware's).")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="A file of `calibrate`, or a preset (default: a100-nvlink).")
    ] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Events of an optimizer step, exactly.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    write: Annotated[bool, typer.Option("--write", help="Write the run TOML and the DeepSpeed JSON.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to --write.")] = Path(),
) -> None:
    """Say which layout fits so many devices, how fast it is, and why; needs no GPU."""
    from rich.console import Console

    from lartpc_ds.advise.search.planner import plan as run_plan

    code = run_plan(
        run,
        Console(),
        devices=devices,
        memory=memory,
        per_node=per_node,
        hardware=hardware,
        global_batch=global_batch,
        overrides=overrides or [],
        write=out if write else None,
        as_json=as_json,
    )
    raise typer.Exit(code)


@plan_app.command()
def tune(
    run: Run,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a trial; one more before them warms up.")],
    stages: Annotated[str, typer.Option(metavar="N,N,...", help="ZeRO stages to try.")] = "0,1,2,3",
    layouts: Annotated[int, typer.Option(min=1, help="How many of the planner's best layouts to try.")] = 3,
    devices: Devices = None,
    hardware: Annotated[
        str | None, typer.Option(help="A file of `calibrate`, or a preset (default: measure this machine first).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For all results (default: runs/tune-<run>-<time>).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the tuning in --out.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train a few steps of the planner's best layouts, with each ZeRO stage, and keep the fastest."""
    from rich.console import Console

    from lartpc_ds.advise.tune.tune import tune as run_tuning

    code = run_tuning(
        run,
        Console(),
        steps=steps,
        stages=stages,
        layouts=layouts,
        devices=devices,
        hardware=hardware,
        out=out,
        resume=resume,
        overrides=overrides or [],
    )
    raise typer.Exit(code)
