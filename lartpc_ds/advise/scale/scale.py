"""`lartpc-ds scale`: the real job at several numbers of ranks, and what becomes of its rate.

Every repeat goes through all sizes, forwards and then backwards, so that a machine that slows down slows all of them
alike. Rejected: all repeats of a size in a row, which charges the drift to the sizes that come last. Ranks on the cores
of a CPU have the same number of threads at every size; otherwise one rank would have all cores already.
"""

import os
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lartpc_ds.advise.scale.scale_folder import ScaleFolder
from lartpc_ds.advise.scale.scale_points import (
    THREADS,
    ScaleTrial,
    chosen_scalings,
    make_trials,
    parse_models,
    parse_modes,
    parse_ranks,
)
from lartpc_ds.advise.trials.trial_job import TrialEnd, run_trial_job
from lartpc_ds.config import recipes
from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.site import Site, apply_file_locking, first_slots, here, of_hostfile, with_environment
from lartpc_ds.jobs.supervise.command import default_devices, shared_cores
from lartpc_ds.jobs.supervise.stops import RESUMABLE, stoppable
from lartpc_ds.report.say import say
from lartpc_ds.report.scaling import PHASES, Row, Sample, print_rows, rows_of, write_ranks, write_rows
from lartpc_ds.report.scaling_plot import draw_rows
from lartpc_ds.training.prepare import absolute_paths

__all__ = ["ScaleRequest", "scale"]


@dataclass(frozen=True)
class ScaleRequest:
    """What the command line asks for."""

    run: str
    ranks: str | None = None
    """Numbers between commas; None: 1, 2 and 4, as far as there are devices."""
    modes: str = "data"
    weak: bool = False
    strong: bool = False
    models: str | None = None
    hostfile: Path | None = None
    launcher: str | None = None
    steps: int = 5
    """Timed steps of a repeat."""
    repeats: int = 3
    out: Path | None = None
    """The folder of the study; None: a new one."""
    resume: bool = False
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class _Study:
    """A study whose points are decided."""

    request: ScaleRequest
    folder: ScaleFolder
    files: tuple[str, ...]
    trials: list[ScaleTrial]
    site: Site
    """That of the largest size."""
    console: Console

    @property
    def jobs(self) -> Iterator[tuple[int, ScaleTrial]]:
        """Repeat and trial in the order in which they run; a job of several series runs once."""
        different = {trial.key: trial for trial in self.trials}
        for repeat in range(1, self.request.repeats + 1):
            order = different.values()
            for trial in order if repeat % 2 == 1 else reversed(order):
                yield repeat, trial


def scale(request: ScaleRequest, console: Console) -> int:
    """Run the whole command; returns its exit code: 1 if no point ran, 75 if it was stopped.

    Raises:
        UserError: before any job runs, for whatever cannot work.
    """
    folder = ScaleFolder((request.out or recipes.fresh_path(request.run, "scale-")).absolute())
    # between jobs; while one runs, it has the signals
    with stoppable(lambda: folder.how_to_go_on, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)):
        modes = parse_modes(request.modes)
        scalings = chosen_scalings(request.weak, request.strong, modes)
        config, ds = recipes.load(request.run, request.overrides)
        config = absolute_paths(config, Path.cwd())
        models = parse_models(request.models, config)
        ranks, site = _sizes(request)
        apply_file_locking(with_environment(site, config.launch))
        asked: dict[str, Any] = {
            **{"run": config.model_dump(mode="json"), "ds": ds, "models": models, "mode": modes, "scaling": scalings},
            **{"ranks": ranks, "hosts": [[host.name, host.slots] for host in site.hosts], "launcher": site.launcher},
            **{"steps": request.steps, "repeats": request.repeats},
        }
        if request.resume:
            if request.out is None:
                raise UserError("--resume: say which scaling study with --out DIR")
            files, trials = folder.read_plan(asked)
        else:
            threads = _threads(config, max(host.slots for host in site.hosts))
            trials = make_trials(
                config, ds, models=models, modes=modes, scalings=scalings, ranks=ranks, threads=threads
            )
            with folder.claimed():
                files = folder.events(config, console)
                folder.write_plan(asked, files, trials)
        with folder.locked():
            return _run(_Study(request, folder, files, trials, site, console))


def _sizes(request: ScaleRequest) -> tuple[tuple[int, ...], Site]:
    """The numbers of ranks, and the site of the largest."""
    if request.hostfile is not None:
        whole = of_hostfile(request.hostfile, "", "", request.launcher)
        most = whole.world_size
        ranks = parse_ranks(request.ranks, most, most, f"--hostfile {request.hostfile} has {most} slot(s)")
        return ranks, first_slots(whole, ranks[-1])
    if request.launcher is not None:
        raise UserError(
            f"--launcher {request.launcher}: without effect on this machine alone; give --hostfile FILE as well"
        )
    cores = shared_cores()
    devices = default_devices() if cores is None else cores
    source = f"this machine has {devices} device(s)"
    ranks = parse_ranks(request.ranks, devices, devices if cores is None else None, source)
    return ranks, here(ranks[-1])


def _threads(config: RunConfig, ranks_of_a_host: int) -> int | None:
    """The threads of every rank at every size; None where ranks have devices of their own.

    Hosts are taken to have as many cores as this machine, because nobody has asked them yet.

    Raises:
        UserError: the user has chosen something else than a number.
    """
    cores = shared_cores()
    if cores is None:
        return None
    chosen = config.launch.environment.get(THREADS) or os.environ.get(THREADS)
    if chosen is None:
        return max(1, cores // ranks_of_a_host)
    if not chosen.isdecimal() or int(chosen) == 0:
        raise UserError(f"{THREADS} = {chosen!r}: must be a whole number above 0, or be left out, to compare sizes")
    return int(chosen)


def _run(study: _Study) -> int:
    folder, console = study.folder, study.console
    for note in _notes(study):
        say(console, note)
    done = folder.results()
    failed = {key.partition("-")[0] for key, sample in done.items() if sample.failure}
    jobs = list(study.jobs)
    for number, (repeat, trial) in enumerate(jobs, start=1):
        told = f"job {number} of {len(jobs)}: {trial.name}, repeat {repeat} of {study.request.repeats}"
        key = f"{trial.key}-{repeat}"
        if key in done or trial.key in failed:
            say(console, f"{told}: {'known' if key in done else 'left out, because it has failed before'}")
            continue
        say(console, told)
        end = _end_of(study, trial, number)
        if end is None:
            _report(study, done)
            say(console, folder.how_to_go_on)
            return RESUMABLE
        done[key] = _sample(trial, repeat, end)
        folder.keep(key, done[key])
        if end.failure:
            failed.add(trial.key)
        say(console, f"  {end.failure}" if end.failure else f"  {done[key].figures['step_seconds']:.3g} s per step")
    rows = _report(study, done)
    if not any(row.figures for row in rows):
        print(f"no point ran to its end; the logs are in {folder.path}", file=sys.stderr)
        return 1
    return 0


def _end_of(study: _Study, trial: ScaleTrial, number: int) -> TrialEnd | None:
    try:
        site = first_slots(study.site, trial.point.ranks)
    except UserError as error:  # of this size: the others may run
        return TrialEnd(failure=str(error))
    folder = study.folder.run_folder(number)
    return run_trial_job(trial.config, trial.ds, site, study.files, study.request.steps, folder, study.console)


def _sample(trial: ScaleTrial, repeat: int, end: TrialEnd) -> Sample:
    if end.failure:
        return Sample(trial.name, repeat, {}, end.failure)
    names = ("step_seconds", *(f"{phase}_seconds" for phase in PHASES), "straggler_factor")
    figures = {name: statistics.median(line[name] for line in end.timed) for name in names}
    figures["peak_bytes"] = max(line["peak_bytes"] for line in end.steps)
    return Sample(trial.name, repeat, figures, busy_seconds=[line["busy_seconds"] for line in end.timed])


def _notes(study: _Study) -> list[str]:
    """What must be known to read the figures of a CPU."""
    threads, cores = study.trials[0].point.threads_per_rank, shared_cores()
    if threads is None or cores is None:
        return []
    notes = [f"threads per rank: {threads}, the same at every size"]
    if study.site.launcher is None:
        ranks = sorted({trial.point.ranks for trial in study.trials})
        notes += [
            f"{size} ranks of {threads} thread(s) share {cores} core(s): oversubscribed"
            for size in ranks
            if size * threads > cores
        ]
    return notes


def _report(study: _Study, done: dict[str, Sample]) -> list[Row]:
    if not done:
        return []
    request, folder, console = study.request, study.folder, study.console
    repeats = range(1, request.repeats + 1)
    samples = {
        trial.point: [done[key] for repeat in repeats if (key := f"{trial.key}-{repeat}") in done]
        for trial in study.trials
    }
    rows = rows_of([trial.point for trial in study.trials], samples)
    print_rows(console, rows)
    write_rows(folder.table_file, rows)
    write_ranks(folder.ranks_file, [trial.point for trial in study.trials], samples)
    say(console, f"table: {folder.table_file}\nevery rank: {folder.ranks_file}\nevery repeat: {folder.results_file}")
    for model in dict.fromkeys(row.point.model for row in rows if row.figures):
        title = f"{recipes.stem_of(request.run)}, {model}: scaling over ranks"
        draw_rows(folder.plot_file(model), title, [row for row in rows if row.point.model == model], _notes(study))
        say(console, f"plot: {folder.plot_file(model)}")
    return rows
