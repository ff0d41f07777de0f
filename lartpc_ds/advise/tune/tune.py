"""`lartpc-ds tune`: the planner's best layouts as short real jobs, with every ZeRO stage that goes with them.

A plan is as good as its hardware file; a minute of the real thing is better. Trials run one after the other on the same
events. One that dies is a row with its reason; what has ended is kept, whatever happens to the tuning.
"""

import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from lartpc_ds.advise.calibrate.calibrate import CalibrateRequest, calibrate
from lartpc_ds.advise.search.planner import memory_of, problem_of
from lartpc_ds.advise.search.search import CostOf, search
from lartpc_ds.advise.tune.tune_folder import TuneFolder
from lartpc_ds.advise.tune.tune_job import run_trial
from lartpc_ds.advise.tune.tune_trials import Trial, make_trials, parse_stages
from lartpc_ds.advise.tune.tune_winner import write_winner
from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.hardware import load
from lartpc_ds.costs.rank_cost import Costs
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.jobs.site import apply_file_locking, here, with_environment
from lartpc_ds.jobs.supervise.command import check_devices, default_devices
from lartpc_ds.report.tuning import TrialResult, draw_results, fastest, print_results, reason, write_table
from lartpc_ds.training.prepare import absolute_paths

__all__ = ["TuneRequest", "tune"]

_GIB = 2**30
_RESUMABLE = 75


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """The command line of `tune`."""

    run: str
    steps: int
    stages: str = "0,1,2,3"
    layouts: int = 3
    devices: int | None = None
    hardware: str | None = None
    out: Path | None = None
    resume: bool = False
    overrides: Sequence[str] = ()


def tune(request: TuneRequest, console: Console, cost_of: CostOf | None = None) -> int:
    """Run the whole command; returns its exit code: 1 if no trial ran to its end, 75 if it was stopped.

    Args:
        request: the command line.
        console: for everything but complaints.
        cost_of: predicts what a candidate takes; None: `planning.rank_cost`.

    Raises:
        UserError: before any trial runs, for whatever cannot work.
    """
    folder = TuneFolder((request.out or _fresh_path(request.run)).absolute())
    with _stoppable(folder):
        stages = parse_stages(request.stages)
        config, ds = recipes.load(request.run, request.overrides)
        config = absolute_paths(config, Path.cwd())
        devices = default_devices() if request.devices is None else request.devices
        check_devices(devices, ds)
        apply_file_locking(with_environment(here(devices), config.launch))
        asked = {
            **{"run": config.model_dump(mode="json"), "ds": ds, "devices": devices, "hardware": request.hardware},
            **{"stages": stages, "layouts": request.layouts, "steps": request.steps},
        }
        if request.resume:
            if request.out is None:
                raise UserError("--resume: say which tuning with --out DIR")
            files, trials = folder.read_plan(asked)
        else:
            with folder.claimed():
                files, trials = _planned(request, config, ds, devices, stages, folder, console, cost_of or Costs())
                folder.write_plan(asked, files, trials)
        with folder.locked():
            return _run(request, trials, files, folder, console)


def _fresh_path(run: str) -> Path:
    return Path.cwd() / "runs" / f"tune-{recipes.stem_of(run)}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextmanager
def _stoppable(folder: TuneFolder) -> Iterator[None]:
    """A stop request between trials; while one runs, its job has the signals."""

    def stop(number: int, frame: FrameType | None) -> None:
        print(_how_to_go_on(folder), file=sys.stderr)
        sys.exit(_RESUMABLE)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how_to_go_on(folder: TuneFolder) -> str:
    if not folder.plan_file.exists():
        return "stopped before the first trial; give the same command again"
    return f"stopped; what has ended is kept: go on with the same command and: --out {folder.path} --resume"


def _planned(
    request: TuneRequest,
    config: RunConfig,
    ds: AskedConfig,
    devices: int,
    stages: Sequence[int],
    folder: TuneFolder,
    console: Console,
    cost_of: CostOf,
) -> tuple[tuple[str, ...], list[Trial]]:
    """The events of all trials, and the trials."""
    problem = problem_of(config, ds)
    if request.hardware is None:
        hardware = calibrate(CalibrateRequest(folder.hardware_file, devices), console)
    else:
        hardware = load(request.hardware)
    memory_bytes = memory_of(hardware, None, devices)
    with console.status("looking at the network") as status:
        plan = search(problem, hardware, devices, memory_bytes, devices, cost=cost_of, say=status.update)
    trials, left_out = make_trials(
        problem,
        plan,
        hardware,
        layouts=request.layouts,
        stages=stages,
        ranks_per_node=devices,
        cost=cost_of,
    )
    for told in left_out:
        _say(console, f"left out: {told}")
    files = config.data.files
    if not files and config.data.target is None:
        files = simulated_events(config, folder.simulated_file, console).data.files
    return files, trials


def _run(
    request: TuneRequest, trials: Sequence[Trial], files: tuple[str, ...], folder: TuneFolder, console: Console
) -> int:
    done = folder.results()
    for number, trial in enumerate(trials, start=1):
        told = f"trial {number} of {len(trials)}: {trial.name}"
        if trial.key in done:
            _say(console, f"{told}: known")
            continue
        _say(
            console,
            f"{told}: predicted {trial.predicted_step_seconds:.3g} s a step, "
            f"{trial.predicted_peak_bytes / _GIB:.2f} GiB a rank",
        )
        result = run_trial(trial, files, request.steps, folder.run_folder(number), console)
        if result is None:
            _report(list(done.values()), request.run, folder, console)
            _say(console, _how_to_go_on(folder))
            return _RESUMABLE
        folder.append(trial, result)
        done[trial.key] = result
        _say(console, _outcome(result))
    results = [done[trial.key] for trial in trials]
    _report(results, request.run, folder, console)
    return _conclude(request, trials, results, folder, console)


def _outcome(result: TrialResult) -> str:
    if result.measured_step_seconds is None or result.measured_peak_bytes is None:
        return f"  {result.failure}"
    return f"  measured {result.measured_step_seconds:.3g} s a step, {result.measured_peak_bytes / _GIB:.2f} GiB a rank"


def _report(results: Sequence[TrialResult], run: str, folder: TuneFolder, console: Console) -> None:
    if results:
        print_results(console, results)
        write_table(folder.table_file, results)
        draw_results(folder.plot_file, f"{recipes.stem_of(run)}: predicted and measured", results)
        _say(console, f"table: {folder.table_file}\nplot: {folder.plot_file}")


def _conclude(
    request: TuneRequest,
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
    toml_path, json_path = write_winner(winner, request.run, folder.path)
    _say(console, reason(best, results))
    _say(console, f"DeepSpeed JSON: {json_path}\nrun TOML: {toml_path}")
    devices = str(winner.layout.world_size)
    _say(console, f"train with: {shlex.join(['lartpc-ds', 'train', str(toml_path), '--devices', devices])}")
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
