"""The commands of `lartpc-ds`: each parses its options, imports what it needs, makes one call and sets the exit code.

No option repeats a config key. Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lartpc_ds import __version__
from lartpc_ds.commands.bench import bench_app
from lartpc_ds.commands.options import (
    AsJson,
    Devices,
    Exclude,
    Hostfile,
    Include,
    Launcher,
    Overrides,
    RunArgument,
)
from lartpc_ds.commands.plan import plan_app
from lartpc_ds.commands.scale import scale_app
from lartpc_ds.errors import UserError
from lartpc_ds.lazy_compiler import defer_compiler

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
config_app = typer.Typer(
    no_args_is_help=True, help="List and copy the shipped run configurations.", rich_markup_mode=None
)
hostfile_app = typer.Typer(
    no_args_is_help=True, help="Write and check the list of hosts for a job on several machines.", rich_markup_mode=None
)
app.add_typer(plan_app)
app.add_typer(scale_app)
app.add_typer(config_app, name="config")
app.add_typer(hostfile_app, name="hostfile")
app.add_typer(bench_app, name="bench")

Verbose = Annotated[bool, typer.Option("--verbose", help="Also show the output of the launcher and of rank 0.")]
Product = Annotated[str, typer.Option(help="Name of the wire images: sparse2d_<product>_group.")]
Truth = Annotated[str, typer.Option(help="Name of the truth particles: particle_<truth>_group.")]
ImageKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Also say what data.isolated=N drops, and what charge lights of the image's patches with "
        "memory.lit_block=N; data.threshold, data.downsample, data.detector and data.saturate may go with them.",
    ),
]


def _version(show: bool) -> None:
    if show:
        print(f"lartpc-ds {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train convolutional networks on whole liquid-argon TPC events with DeepSpeed."""


@app.command()
def train(
    run: RunArgument,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<run>-<time>).")] = None,
    devices: Devices = None,
    hostfile: Hostfile = None,
    launcher: Launcher = None,
    include: Include = "",
    exclude: Exclude = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir or RUN.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print it, and run nothing."),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Train a network: check everything, print the plan, start the deepspeed launcher, show the result."""
    defer_compiler()
    from lartpc_ds.jobs.site_checks import HostOptions
    from lartpc_ds.jobs.train import train as run_training

    hosts = HostOptions(devices, hostfile, launcher, include, exclude)
    code = run_training(
        run, overrides or [], hosts, _console(), run_dir=run_dir, resume=resume, dry_run=dry_run, verbose=verbose
    )
    raise typer.Exit(code)


@app.command()
def submit(
    run: RunArgument,
    system: Annotated[str, typer.Option(help="The batch system: slurm, lsf or pbs.")],
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<run>-<system>).")] = None,
    out: Annotated[Path | None, typer.Option(help="Script to write (default: <run>.<system>.sh).")] = None,
    launcher: Annotated[
        str | None, typer.Option(help="slurm (the default on Slurm), pdsh (the default elsewhere) or openmpi.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Also submit the script.")] = False,
) -> None:
    """Write a batch script that trains a run, saves it before the time is over and resumes it when it is requeued."""
    from lartpc_ds.jobs.batch.batch import SubmitRequest
    from lartpc_ds.jobs.batch.batch import submit as submit_run

    submit_run(SubmitRequest(run, system, overrides or [], run_dir, out, launcher, now))


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="Hardware file to write.")] = Path("hardware.toml"),
    devices: Annotated[
        int | None,
        typer.Option(help="Number of ranks that will share this machine (default: one per GPU, or two CPU ranks)."),
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Also measure messages between the hosts of this file.")] = None,
    launcher: Launcher = None,
) -> None:
    """Measure kernels, memory, messages and the engine on this machine for the planner; takes a minute or two."""
    from lartpc_ds.advise.calibrate.calibrate import calibrate as run_calibration

    run_calibration(out, _console(), devices=devices, hostfile=hostfile, launcher=launcher)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.")],
    files: Annotated[
        list[str] | None, typer.Option(help="Event files or globs (default: the held-out events of the run).")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last or step_<number>.")] = "last",
    devices: Devices = None,
    hostfile: Hostfile = None,
    launcher: Launcher = None,
    include: Include = "",
    exclude: Exclude = "",
) -> None:
    """Evaluate a checkpoint: print figures and the confusion matrix, and write a table of scores."""
    defer_compiler()
    from lartpc_ds.jobs.evaluate import evaluate_checkpoint
    from lartpc_ds.jobs.site_checks import HostOptions

    hosts = HostOptions(devices, hostfile, launcher, include, exclude)
    raise typer.Exit(evaluate_checkpoint(run_dir, files or [], checkpoint, hosts, _console()))


@app.command()
def report(run_dirs: Annotated[list[Path], typer.Argument(help="The folders of runs.")]) -> None:
    """Print a table with the results of one run or several."""
    from lartpc_ds.config import recipes
    from lartpc_ds.report.summary import print_summary

    print_summary(_console(), [recipes.folder_of(path) for path in run_dirs])


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="HDF5 file to write (larcv3's layout).")],
    detector: Annotated[str, typer.Option(help="microboone, microboone_raw, argoneut or sbnd.")] = "microboone",
    events: Annotated[int, typer.Option(min=1, help="Number of events.")] = 100,
    classes: Annotated[str, typer.Option(help="Species, separated by commas.")] = "electron,gamma,muon,pion,kaon",
    momentum: Annotated[str, typer.Option(metavar="LOW:HIGH", help="In GeV/c, uniform between the two.")] = "0.2:1.0",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes; the events do not depend on it.")] = 1,
) -> None:
    """Simulate single particles in a detector."""
    from lartpc_ds.jobs.embedded import simulate_with_progress

    simulate_with_progress(
        out,
        detector,
        num_events=events,
        classes=tuple(name.strip() for name in classes.split(",")),
        momentum_gev=_range(momentum),
        seed=seed,
        workers=workers,
        console=_console(),
    )


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise UserError(f"--momentum {text!r}: must be LOW:HIGH in GeV/c, such as 0.2:1.0") from None


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(help="Event files or globs.")],
    product: Product = "auto",
    truth: Truth = "auto",
    overrides: ImageKeys = None,
    as_json: AsJson = False,
) -> None:
    """Print what event files contain, and what is wrong with them."""
    from rich.console import Console

    from lartpc_ds.report.inspect import config_of_images, inspect_files, print_inspection

    images = config_of_images(overrides or [])
    result = inspect_files(files, product, truth, console=Console(stderr=True), images=images)
    if as_json:
        print(json.dumps(result))
    else:
        print_inspection(_console(), result)
    raise typer.Exit(2 if result["problems"] else 0)


@app.command()
def display(
    file: Annotated[Path, typer.Argument(help="An event file.")],
    event: Annotated[int, typer.Option(min=0, help="Index of the event in the file.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("event.png"),
    full: Annotated[bool, typer.Option("--full", help="Draw whole planes, not only the part with charge.")] = False,
    product: Product = "auto",
    truth: Truth = "auto",
) -> None:
    """Draw every plane of an event, wire against tick, on one colour scale."""
    from lartpc_ds.report.display import display_event

    display_event(file, event, out, product=product, truth=truth, full=full)
    print(out)


@config_app.command("list")
def config_list() -> None:
    """Print the names of the shipped recipes."""
    from lartpc_ds.config import recipes

    print("\n".join(recipes.names()))


@config_app.command("init")
def config_init(
    recipe: Annotated[str, typer.Argument(help="The name of a shipped recipe.")],
    out: Annotated[Path | None, typer.Argument(help="File to write (default: <recipe>.toml).")] = None,
) -> None:
    """Copy a shipped recipe into a file that you can change."""
    from lartpc_ds.config import recipes

    if recipe not in recipes.names():
        raise UserError(f"{recipe!r}: no such recipe; there are {', '.join(recipes.names())}")
    _write_new(out or Path(f"{recipe}.toml"), recipes.path_of(recipe).read_text())


def _write_new(target: Path, text: str) -> None:
    if target.exists():
        raise UserError(f"{target}: exists; choose another name")
    if not target.parent.is_dir():
        raise UserError(f"{target}: no such folder {target.parent}; make it first")
    target.write_text(text)
    print(target)


@hostfile_app.command("make")
def hostfile_make(
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="[NODES]...", help="Hosts, such as gpu[01-04,07]:4.")
    ] = None,
    system: Annotated[str, typer.Option("--from", help="The source: slurm, lsf, pbs, nodes or auto.")] = "auto",
    slots: Annotated[str, typer.Option(metavar="auto|N", help="Ranks per host: what the source says, or N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="File to write (default: print the hostfile).")] = None,
) -> None:
    """Write a hostfile from this Slurm, LSF or PBS job, or from NODES."""
    import os
    from datetime import date

    from lartpc_ds.jobs.hosts.allocation import make

    text = make(nodes or [], system, slots, os.environ, date.today())
    if out is None:
        print(text, end="")
    else:
        _write_new(out, text)


@hostfile_app.command("check")
def hostfile_check(
    file: Annotated[Path, typer.Argument(help="A hostfile, which has a line NAME slots=N per host.")],
    include: Include = "",
    exclude: Exclude = "",
    launcher: Launcher = None,
    run: Annotated[str | None, typer.Option(help="Also look for the data files of this run TOML or recipe.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of runs (default: the current folder).")] = None,
) -> None:
    """Ask every host whether a job may start there, and print what to mend."""
    from lartpc_ds.jobs.preflight.hostfile_check import check

    code = check(file, _console(), include=include, exclude=exclude, launcher=launcher, run=run, run_dir=run_dir)
    raise typer.Exit(code)


def _console() -> "Console":
    from rich.console import Console

    return Console()


def main() -> None:
    """Run the command line; print a UserError as one message and exit with code 2."""
    logging.disable(logging.WARNING)  # DeepSpeed logs when it is imported; ranks keep their own logs
    try:
        app()
    except UserError as error:
        print(f"lartpc-ds: {error}", file=sys.stderr)
        sys.exit(2)
