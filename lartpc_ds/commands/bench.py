"""The commands `lartpc-ds bench ...`: progress goes to stderr, the result to stdout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lartpc_ds.commands.options import AsJson, MeasuredHardware, Overrides

__all__ = ["bench_app"]

bench_app = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine.", rich_markup_mode=None)

Recipe = Annotated[str, typer.Argument(help="A recipe, run TOML or run folder.")]
Repeats = Annotated[int, typer.Option(min=1, help="Number of fresh processes per variant, cut or layout.")]
Steps = Annotated[int, typer.Option(min=1, help="Number of timed steps per process.")]


def _print_result(result: Mapping[str, Any], as_json: bool) -> None:
    print(json.dumps(result, indent=None if as_json else 2))


@bench_app.command("step")
def bench_step(
    recipe: Recipe = "microboone-full",
    overrides: Overrides = None,
    repeats: Repeats = 3,
    steps: Steps = 3,
    as_json: AsJson = False,
) -> None:
    """Compare the training step of one rank with a hand-written PyTorch loop of the same network."""
    from lartpc_ds.advise.bench.step import bench

    _print_result(bench(recipe, overrides or [], repeats=repeats, steps=steps), as_json)


@bench_app.command("memory")
def bench_memory(
    recipe: Recipe = "microboone-full",
    overrides: Overrides = None,
    repeats: Repeats = 3,
    steps: Steps = 3,
    as_json: AsJson = False,
) -> None:
    """Measure what each way to keep fewer activations saves and costs, against plain PyTorch on one rank."""
    from lartpc_ds.advise.bench.memory import bench

    _print_result(bench(recipe, overrides or [], repeats=repeats, steps=steps), as_json)


@bench_app.command("lit")
def bench_lit(
    recipe: Recipe = "microboone-full",
    overrides: Overrides = None,
    repeats: Repeats = 1,
    steps: Annotated[int, typer.Option(min=1, help="Number of timed events, one step each.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Compare a step that computes only what is lit with plain PyTorch on one rank, event by event."""
    from lartpc_ds.advise.bench.lit import bench

    _print_result(bench(recipe, overrides or [], repeats=repeats, steps=steps), as_json)


@bench_app.command("tiles")
def bench_tiles(
    recipe: Recipe = "microboone-full",
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of tiles along the wires.")] = 2,
    cols: Annotated[int, typer.Option(min=1, help="Number of tiles along the ticks.")] = 1,
    repeats: Repeats = 3,
    steps: Steps = 3,
    as_json: AsJson = False,
) -> None:
    """Compare one process that has all cores with rows x cols tile ranks that share them."""
    from lartpc_ds.advise.bench.tiles import bench

    _print_result(bench(recipe, overrides or [], rows=rows, cols=cols, repeats=repeats, steps=steps), as_json)


@bench_app.command("pipeline")
def bench_pipeline(
    recipe: Recipe = "microboone-full",
    overrides: Overrides = None,
    stages: Annotated[
        list[int] | None, typer.Option(min=2, help="Number of pipeline stages (default: 2, and then 4).")
    ] = None,
    measured: Annotated[bool, typer.Option("--measure", help="Also train every cut, one process per stage.")] = False,
    repeats: Repeats = 3,
    steps: Steps = 2,
    as_json: AsJson = False,
) -> None:
    """Compare cuts of a network into pipeline stages: balanced, by parameters, by number of blocks."""
    from lartpc_ds.advise.bench.pipeline import bench

    numbers = stages or [2, 4]
    result = bench(recipe, overrides or [], stages=numbers, measured=measured, repeats=repeats, steps=steps)
    _print_result(result, as_json)


@bench_app.command("compare")
def bench_compare(
    recipe: Recipe = "microboone-full",
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=2, help="Number of ranks, which share this machine's cores.")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only the variants whose names begin with NAME.")
    ] = None,
    repeats: Repeats = 3,
    steps: Steps = 2,
    as_json: AsJson = False,
) -> None:
    """Compare with plain PyTorch, DDP, FSDP2, DeepSpeed's ZeRO and its pipeline, on the same network and events."""
    from lartpc_ds.advise.bench.compare import bench

    result = bench(recipe, overrides or [], only=only or [], ranks=ranks, repeats=repeats, steps=steps)
    _print_result(result, as_json)


@bench_app.command("handmade")
def bench_handmade(
    recipe: Annotated[str, typer.Argument(help="A recipe or run TOML of particles.")] = "quickstart",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a network has to beat on the events of a run: hand-made image moments; and what the truth allows."""
    from lartpc_ds.advise.bench.hand_made import bench

    _print_result(bench(recipe, overrides or []), as_json)


@bench_app.command("cosmictagger")
def bench_cosmictagger(as_json: AsJson = False) -> None:
    """Fit the planner's model of large jobs on half of CosmicTagger's public rates, predict the rest; runs nothing."""
    from lartpc_ds.advise.bench.cosmictagger import bench

    _print_result(bench(), as_json)


@bench_app.command("planner")
def bench_planner(
    hardware: MeasuredHardware = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only the layouts whose names begin with NAME.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing, and take the samples of this earlier result.")
    ] = None,
    repeats: Repeats = 3,
    steps: Steps = 2,
    as_json: AsJson = False,
) -> None:
    """Compare what the planner says of a list of layouts with what they take on this machine."""
    from lartpc_ds.advise.bench.planner import bench
    from lartpc_ds.costs.rank_cost import cost

    result = bench(cost, only=only or [], repeats=repeats, steps=steps, hardware=hardware, measured=measured)
    _print_result(result, as_json)
