"""The commands `plan` and `tune`, which say how to run before device-hours are spent."""

from pathlib import Path
from typing import Annotated

import typer

from lartpc_ds.commands.options import AsJson, Devices, MeasuredHardware, Overrides, RunArgument

__all__ = ["plan_app"]

plan_app = typer.Typer(rich_markup_mode=None)


@plan_app.command()
def plan(
    run: RunArgument,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices of the whole job.")],
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of one device, such as 40GiB (default: --hardware's).")
    ] = None,
    per_node: Annotated[int | None, typer.Option(min=1, help="Devices per machine (default: --hardware's).")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="A file of `calibrate`, or a preset (default: a100-nvlink).")
    ] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Exact number of events per optimizer step.")] = None,
    lit_share: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE[,SHARE]",
            help="Share of patches that charge lights in the median and the brightest event; offers memory.lit_block.",
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    write: Annotated[bool, typer.Option("--write", help="Also write the run TOML and the DeepSpeed JSON.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files of --write.")] = Path(),
) -> None:
    """Say which layout fits on so many devices, how fast it is, and why; needs no GPU."""
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
        lit_share=lit_share,
        overrides=overrides or [],
        write=out if write else None,
        as_json=as_json,
    )
    raise typer.Exit(code)


@plan_app.command()
def tune(
    run: RunArgument,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per trial, after one that warms up.")],
    stages: Annotated[
        str, typer.Option("--zero-stages", "--stages", metavar="N,N,...", help="ZeRO stages to try with every layout.")
    ] = "0,1,2,3",
    layouts: Annotated[int, typer.Option(min=1, help="Number of the planner's best layouts to try.")] = 3,
    devices: Devices = None,
    hardware: MeasuredHardware = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for all results (default: runs/tune-<run>-<time>).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the tuning in --out.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train a few steps with the planner's best layouts and each ZeRO stage, and keep the fastest."""
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
