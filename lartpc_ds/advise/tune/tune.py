"""`lartpc-ds tune`: the planner's best layouts as short real jobs, with every ZeRO stage that goes with them.

A plan is as good as its hardware file; a minute of the real thing is better. Trials run one after the other on the same
events. One that dies is a row with its reason; what has ended is kept, whatever happens to the tuning.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lartpc_ds.advise.calibrate.calibrate import calibrate
from lartpc_ds.advise.search.planner import memory_of, problem_of
from lartpc_ds.advise.search.search import CostOf, search
from lartpc_ds.advise.tune.tune_folder import TuneFolder
from lartpc_ds.advise.tune.tune_job import run_trial
from lartpc_ds.advise.tune.tune_trials import Trial, make_trials, parse_stages
from lartpc_ds.advise.tune.tune_winner import write_winner
from lartpc_ds.config import recipes
from lartpc_ds.costs.hardware import Hardware, load
from lartpc_ds.costs.problem import Problem
from lartpc_ds.costs.rank_cost import Costs
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.site import apply_file_locking, here, with_environment
from lartpc_ds.jobs.supervise.command import check_devices, default_devices
from lartpc_ds.jobs.supervise.stops import RESUMABLE, stoppable
from lartpc_ds.report.say import say
from lartpc_ds.report.tuning import TrialResult, draw_results, fastest, print_results, reason, write_table
from lartpc_ds.training.prepare import absolute_paths

__all__ = ["tune"]

_GIB = 2**30


def tune(
    run: str,
    console: Console,
    *,
    steps: int,
    stages: str = "0,1,2,3",
    layouts: int = 3,
    devices: int | None = None,
    hardware: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    cost_of: CostOf | None = None,
) -> int:
    """Run the whole command; returns its exit code: 1 if no trial ran to its end, 75 if it was stopped.

    Args:
        run: the RUN to tune.
        console: for everything but complaints.
        steps: timed steps of a trial.
        stages: the ZeRO stages to try, between commas.
        layouts: how many of the planner's best layouts to try.
        devices: how many of this machine to use; None: all.
        hardware: a file or a preset; None: this machine is measured first.
        out: the folder of the tuning; None: a new one.
        resume: go on with the tuning in `out`.
        overrides: the `--set`s.
        cost_of: predicts what a candidate takes; None: `costs.rank_cost`.

    Raises:
        UserError: before any trial runs, for whatever cannot work.
    """
    folder = TuneFolder((out or recipes.fresh_path(run, "tune-")).absolute())
    # between trials; while one runs, its job has the signals
    with stoppable(lambda: folder.how_to_go_on, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)):
        zero_stages = parse_stages(stages)
        config, ds = recipes.load(run, overrides)
        config = absolute_paths(config, Path.cwd())
        if config.memory.lit_block:
            raise UserError(
                f"memory.lit_block = {config.memory.lit_block!r}: tune looks at no event, on which the time of such a "
                "step depends; set memory.lit_block = 0, or use plan and bench lit"
            )
        devices = default_devices() if devices is None else devices
        check_devices(devices, ds)
        apply_file_locking(with_environment(here(devices), config.launch))
        asked = {
            **{"run": config.model_dump(mode="json"), "ds": ds, "devices": devices, "hardware": hardware},
            **{"stages": zero_stages, "layouts": layouts, "steps": steps},
        }
        if resume:
            if out is None:
                raise UserError("--resume: say which tuning with --out DIR")
            files, trials = folder.read_plan(asked)
        else:
            with folder.claimed():
                machine = _machine(hardware, folder, devices, console)
                problem, cost = problem_of(config, ds), cost_of or Costs()
                trials = _planned(problem, machine, devices, cost, layouts, zero_stages, console)
                files = folder.events(config, console)
                folder.write_plan(asked, files, trials)
        with folder.locked():
            return _run(run, steps, trials, files, folder, console)


def _machine(hardware: str | None, folder: TuneFolder, devices: int, console: Console) -> Hardware:
    return calibrate(folder.hardware_file, console, devices=devices) if hardware is None else load(hardware)


def _planned(
    problem: Problem,
    machine: Hardware,
    devices: int,
    cost: CostOf,
    layouts: int,
    stages: Sequence[int],
    console: Console,
) -> list[Trial]:
    """So many of the planner's best layouts, each with every ZeRO stage that goes with it."""
    memory_bytes = memory_of(machine, None, devices)
    with console.status("looking at the network") as status:
        plan = search(problem, machine, devices, memory_bytes, devices, cost=cost, say=status.update)
    trials, left_out = make_trials(
        problem, plan, machine, layouts=layouts, stages=stages, ranks_per_node=devices, cost=cost
    )
    for told in left_out:
        say(console, f"left out: {told}")
    return trials


def _run(
    run: str, steps: int, trials: Sequence[Trial], files: tuple[str, ...], folder: TuneFolder, console: Console
) -> int:
    done = folder.results()
    for number, trial in enumerate(trials, start=1):
        told = f"trial {number} of {len(trials)}: {trial.name}"
        if trial.key in done:
            say(console, f"{told}: known")
            continue
        say(
            console,
            f"{told}: predicted {trial.predicted_step_seconds:.3g} s a step, "
            f"{trial.predicted_peak_bytes / _GIB:.2f} GiB a rank",
        )
        result = run_trial(trial, files, steps, folder.run_folder(number), console)
        if result is None:
            _report(list(done.values()), run, folder, console)
            say(console, folder.how_to_go_on)
            return RESUMABLE
        folder.append(trial, result)
        done[trial.key] = result
        say(console, _outcome(result))
    results = [done[trial.key] for trial in trials]
    _report(results, run, folder, console)
    return _conclude(run, trials, results, folder, console)


def _outcome(result: TrialResult) -> str:
    if result.measured_step_seconds is None or result.measured_peak_bytes is None:
        return f"  {result.failure}"
    return f"  measured {result.measured_step_seconds:.3g} s a step, {result.measured_peak_bytes / _GIB:.2f} GiB a rank"


def _report(results: Sequence[TrialResult], run: str, folder: TuneFolder, console: Console) -> None:
    if results:
        print_results(console, results)
        write_table(folder.table_file, results)
        draw_results(folder.plot_file, f"{recipes.stem_of(run)}: predicted and measured", results)
        say(console, f"table: {folder.table_file}\nplot: {folder.plot_file}")


def _conclude(
    run: str,
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    folder: TuneFolder,
    console: Console,
) -> int:
    best = fastest(results)
    if best is None:
        print(f"no trial ran to its end; their logs are in {folder.path}", file=sys.stderr)
        return 1
    (winner,) = [trial for trial, result in zip(trials, results, strict=True) if result is best]
    toml_path, json_path = write_winner(winner, run, folder.path)
    say(console, reason(best, results))
    say(console, f"DeepSpeed JSON: {json_path}\nrun TOML: {toml_path}")
    devices = str(winner.layout.world_size)
    say(console, f"train with: {shlex.join(['lartpc-ds', 'train', str(toml_path), '--devices', devices])}")
    return 0
