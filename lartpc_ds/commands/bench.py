"""The commands `lartpc-ds bench ...`: progress goes to stderr, the result to stdout."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lartpc_ds.commands.options import AsJson, Overrides

__all__ = ["bench_app"]

bench_app = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine.", rich_markup_mode=None)


@bench_app.command("step")
def bench_step(
    recipe: Annotated[str, typer.Argument(help="A recipe, run TOML or run folder.")] = "microboone-full",
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes a variant.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a process.")] = 3,
    as_json: AsJson = False,
) -> None:
    """One rank's training step against a hand-written PyTorch loop of the same network."""
    from lartpc_ds.advise.bench.step import bench

    result = bench(recipe, overrides or [], repeats=repeats, steps=steps)
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


@bench_app.command("memory")
def bench_memory(
    recipe: Annotated[str, typer.Argument(help="A recipe, run TOML or run folder.")] = "microboone-full",
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes a variant.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a process.")] = 3,
    as_json: AsJson = False,
) -> None:
    """What each lever on activations saves and costs, against plain PyTorch on one rank."""
    from lartpc_ds.advise.bench.memory import bench

    result = bench(recipe, overrides or [], repeats=repeats, steps=steps)
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


@bench_app.command("tiles")
def bench_tiles(
    recipe: Annotated[str, typer.Argument(help="A recipe, run TOML or run folder.")] = "microboone-full",
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Tiles along the wires.")] = 2,
    cols: Annotated[int, typer.Option(min=1, help="Tiles along the ticks.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes a variant.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a process.")] = 3,
    as_json: AsJson = False,
) -> None:
    """One process with all cores against rows x cols tile ranks that share them."""
    from lartpc_ds.advise.bench.tiles import bench

    result = bench(recipe, overrides or [], rows=rows, cols=cols, repeats=repeats, steps=steps)
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


@bench_app.command("pipeline")
def bench_pipeline(
    recipe: Annotated[str, typer.Argument(help="A recipe, run TOML or run folder.")] = "microboone-full",
    overrides: Overrides = None,
    stages: Annotated[list[int] | None, typer.Option(min=2, help="Stages (default: 2 and 4).")] = None,
    measured: Annotated[bool, typer.Option("--measure", help="Train every cut, too, one process a stage.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes a cut.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a process.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Cuts of a network into pipeline stages: balanced, by parameters, by number of blocks."""
    from lartpc_ds.advise.bench.pipeline import bench

    chosen = stages or [2, 4]
    result = bench(recipe, overrides or [], stages=chosen, measured=measured, repeats=repeats, steps=steps)
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


@bench_app.command("handmade")
def bench_handmade(
    recipe: Annotated[str, typer.Argument(help="A recipe or run TOML of particles.")] = "quickstart",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """What a network has to beat on a run's events: hand-made image moments; and what the truth allows."""
    from lartpc_ds.advise.bench.hand_made import bench

    result = bench(recipe, overrides or [])
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


@bench_app.command("cosmictagger")
def bench_cosmictagger(as_json: AsJson = False) -> None:
    """The planner's model of messages beside public rates of CosmicTagger on up to 1700 GPUs; runs nothing."""
    from lartpc_ds.advise.bench.cosmictagger import bench

    result = bench()
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))


@bench_app.command("planner")
def bench_planner(
    hardware: Annotated[
        str | None, typer.Option(help="A file of `calibrate`, or a preset (default: measure this machine first).")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Layouts whose names begin so.")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing: take the samples of this earlier result.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes a layout.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a process.")] = 2,
    as_json: AsJson = False,
) -> None:
    """What the planner says of a list of layouts, beside what they take on this machine."""
    from lartpc_ds.advise.bench.planner import bench
    from lartpc_ds.costs.rank_cost import cost

    result = bench(cost, only=only or [], repeats=repeats, steps=steps, hardware=hardware, measured=measured)
    print(json.dumps(result) if as_json else json.dumps(result, indent=2))
