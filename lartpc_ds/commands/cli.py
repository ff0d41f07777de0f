"""The command line: parse, import what the command needs, one call, exit code.

No option repeats a config key, and nothing heavy is imported before a command runs, so `--help` answers at once.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lartpc_ds import __version__
from lartpc_ds.commands.bench import bench_app
from lartpc_ds.commands.options import AsJson, Devices, Exclude, Include, Launcher, Overrides, Run
from lartpc_ds.commands.plan import plan_app
from lartpc_ds.errors import UserError
from lartpc_ds.lazy_compiler import defer_compiler

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
config_app = typer.Typer(no_args_is_help=True, help="Shipped run configurations.", rich_markup_mode=None)
hostfile_app = typer.Typer(no_args_is_help=True, help="Hosts of a job on several machines.", rich_markup_mode=None)
app.add_typer(plan_app)
app.add_typer(config_app, name="config")
app.add_typer(hostfile_app, name="hostfile")
app.add_typer(bench_app, name="bench")

Verbose = Annotated[bool, typer.Option("--verbose", help="Show the launcher's and rank 0's output too.")]
Product = Annotated[str, typer.Option(help="Wire images: sparse2d_<product>_group.")]
Truth = Annotated[str, typer.Option(help="Truth particles: particle_<truth>_group.")]


def _version(show: bool) -> None:
    if show:
        print(f"lartpc-ds {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """DeepSpeed training of convolutional networks on whole liquid-argon TPC events."""


@app.command()
def train(
    run: Run,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder (default: runs/<run>-<time>).")] = None,
    devices: Devices = None,
    hostfile: Annotated[Path | None, typer.Option(help="Train on its hosts (lines of NAME slots=N).")] = None,
    launcher: Launcher = None,
    include: Include = "",
    exclude: Exclude = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print configs and command, run nothing.")] = False,
    verbose: Verbose = False,
) -> None:
    """Train: check everything, print the plan, start the deepspeed launcher, show the result."""
    defer_compiler()
    from lartpc_ds.jobs.train import TrainRequest
    from lartpc_ds.jobs.train import train as run_training

    request = TrainRequest(
        run,
        overrides or [],
        run_dir,
        devices,
        hostfile=hostfile,
        launcher=launcher,
        include=include,
        exclude=exclude,
        resume=resume,
        dry_run=dry_run,
        verbose=verbose,
    )
    raise typer.Exit(run_training(request, _console()))


@app.command()
def submit(
    run: Run,
    system: Annotated[str, typer.Option(help="slurm, lsf or pbs.")],
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder (default: runs/<run>-<system>).")] = None,
    out: Annotated[Path | None, typer.Option(help="Script to write (default: <run>.<system>.sh).")] = None,
    launcher: Annotated[str | None, typer.Option(help="slurm (Slurm's default), pdsh (of others) or openmpi.")] = None,
    now: Annotated[bool, typer.Option("--now", help="Submit it, too.")] = False,
) -> None:
    """Write a batch script that trains the run, saves before its time is over and resumes when it is requeued."""
    from lartpc_ds.jobs.batch.batch import SubmitRequest
    from lartpc_ds.jobs.batch.batch import submit as submit_run

    submit_run(SubmitRequest(run, system, overrides or [], run_dir, out, launcher, now))


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="Hardware file to write.")] = Path("hardware.toml"),
    devices: Annotated[
        int | None, typer.Option(help="Ranks that will share this machine (default: every GPU, or two CPU ranks).")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Measure messages between its hosts, too.")] = None,
    launcher: Launcher = None,
) -> None:
    """Measure this machine for the planner, in a minute or two: kernels, memory, messages, the engine itself."""
    from lartpc_ds.advise.calibrate.calibrate import calibrate as run_calibration

    run_calibration(out, _console(), devices=devices, hostfile=hostfile, launcher=launcher)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    files: Annotated[
        list[str] | None, typer.Option(help="Event files or globs (default: the held-out events).")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last or step_<number>.")] = "last",
    devices: Devices = None,
    hostfile: Annotated[Path | None, typer.Option(help="Evaluate on its hosts (lines of NAME slots=N).")] = None,
    launcher: Launcher = None,
    include: Include = "",
    exclude: Exclude = "",
) -> None:
    """Evaluate a checkpoint: figures, confusion matrix and a table of scores."""
    defer_compiler()
    from lartpc_ds.jobs.evaluate import EvaluateRequest
    from lartpc_ds.jobs.evaluate import evaluate as run_evaluation

    request = EvaluateRequest(
        run_dir,
        files or [],
        checkpoint,
        devices,
        hostfile=hostfile,
        launcher=launcher,
        include=include,
        exclude=exclude,
    )
    raise typer.Exit(run_evaluation(request, _console()))


@app.command()
def report(run_dirs: Annotated[list[Path], typer.Argument(help="Folders of runs.")]) -> None:
    """Print the result table of one run or several."""
    from lartpc_ds.config import recipes
    from lartpc_ds.report.summary import print_summary

    print_summary(_console(), [recipes.folder_of(path) for path in run_dirs])


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="HDF5 file to write (larcv3's layout).")],
    detector: Annotated[str, typer.Option(help="microboone, microboone_raw, argoneut or sbnd.")] = "microboone",
    events: Annotated[int, typer.Option(min=1)] = 100,
    classes: Annotated[str, typer.Option(help="Species, separated by commas.")] = "electron,gamma,muon,pion,kaon",
    momentum: Annotated[str, typer.Option(metavar="LOW:HIGH", help="GeV/c, uniform between the two.")] = "0.2:1.0",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the events do not depend on it.")] = 1,
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
    as_json: AsJson = False,
) -> None:
    """Say what is in event files, and what is wrong with them."""
    from rich.console import Console

    from lartpc_ds.report.inspect import inspect_files, print_inspection

    result = inspect_files(files, product, truth, console=Console(stderr=True))
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
    full: Annotated[bool, typer.Option("--full", help="The whole planes, not only where there is charge.")] = False,
    product: Product = "auto",
    truth: Truth = "auto",
) -> None:
    """Draw an event: every plane, wire against tick, on one colour scale."""
    from lartpc_ds.report.display import display_event

    display_event(file, event, out, product=product, truth=truth, full=full)
    print(out)


@config_app.command("list")
def config_list() -> None:
    """Names of the shipped recipes."""
    from lartpc_ds.config import recipes

    print("\n".join(recipes.names()))


@config_app.command("init")
def config_init(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe.")],
    out: Annotated[Path | None, typer.Argument(help="File to write (default: <recipe>.toml).")] = None,
) -> None:
    """Copy a recipe out, to change it."""
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
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODES]...", help="Such as gpu[01-04,07]:4.")] = None,
    system: Annotated[str, typer.Option("--from", help="slurm, lsf, pbs, nodes or auto.")] = "auto",
    slots: Annotated[str, typer.Option(metavar="auto|N", help="Ranks a host: what the source says, or N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="File to write (default: print it).")] = None,
) -> None:
    """Write a hostfile: the hosts of this Slurm, LSF or PBS job, or NODES."""
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
    file: Annotated[Path, typer.Argument(help="A hostfile: lines of NAME slots=N.")],
    include: Include = "",
    exclude: Exclude = "",
    launcher: Launcher = None,
    run: Annotated[str | None, typer.Option(help="Look for the data files of this run TOML or recipe, too.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of runs (default: the current folder).")] = None,
) -> None:
    """May a job start on these hosts? Ask them all, and say what to mend."""
    from lartpc_ds.jobs.preflight.hostfile_check import CheckRequest, check

    raise typer.Exit(check(CheckRequest(file, include, exclude, launcher, run, run_dir), _console()))


def _console() -> "Console":
    from rich.console import Console

    return Console()


def main() -> None:
    """Run the command line; a UserError becomes one message and exit code 2."""
    logging.disable(logging.WARNING)  # DeepSpeed talks at import; ranks keep their own logs
    try:
        app()
    except UserError as error:
        print(f"lartpc-ds: {error}", file=sys.stderr)
        sys.exit(2)
