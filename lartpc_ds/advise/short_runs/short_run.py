"""A short run trains a few steps in fresh processes, and says what a step takes in seconds and in bytes.

Whatever is measured is prepared as `lartpc-ds train` prepares it, so it is what a user gets. Ways to run that are
compared take turns, first to last and back, so that a machine that slows down slows all of them. Seconds come from
processes whose allocator is as it is; peaks come from processes of their own in which its thresholds are fixed, because
glibc adapts them and the same step then measures a third more or less.
"""

import json
import shutil
import statistics
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from rich.console import Console

from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import MemoryConfig, RunConfig, SplitConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.jobs.supervise.command import check_devices
from lartpc_ds.jobs.together import PINNED, RanksFailed, run_together
from lartpc_ds.layout import Bounds, Layout

__all__ = [
    "WARM_UP_STEPS",
    "Program",
    "Samples",
    "ShortRun",
    "by_figure",
    "medians",
    "prepared",
    "run_ranks",
    "shortened",
    "steps_of",
    "take_turns",
]

WARM_UP_STEPS = 1
"""Allocators grow and libraries choose kernels: the first step says nothing of the others."""

Program = Literal["ours", "plain", "engine", "ddp", "fsdp2", "deepspeed_zero", "deepspeed_pipe"]
"""What a rank runs: see `short_runs.rank`."""
Samples = dict[str, list[float]]
"""One number per repeat, by what it measures: `step_seconds`, `peak_bytes` and others of a step's metrics line."""


def shortened(config: RunConfig, steps: int) -> RunConfig:
    """The same run for `steps` timed steps: it trains on all events, evaluates none and keeps no checkpoint between."""
    data = config.data.model_copy(update={"split": SplitConfig(train=1.0, validation=0.0)})
    length = {"max_steps": WARM_UP_STEPS + steps, "epochs": None, "eval_every": 0, "checkpoint_every": 0}
    train = config.train.model_copy(update=length)
    return config.model_copy(update={"data": data, "train": train})


def prepared(config: RunConfig, ds: AskedConfig, layout: Layout, path: Path, console: Console) -> RunFolder:
    """A run folder at `path` that the ranks of a short run can read."""
    check_devices(layout.world_size, ds)
    folder = RunFolder(path)
    folder.claim()
    prepare_run(config, ds, layout, folder, console)
    return folder


def steps_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The metrics line of every training step."""
    return [line for line in folder.metrics() if "loss" in line]


def run_ranks(folder: RunFolder, program: Program, ranks: int, variables: Mapping[str, str]) -> list[Any]:
    """Run the program from its first step, in a fresh process per rank; what each rank says.

    The processes share the machine's cores evenly and have `variables` in their environment.
    """
    for left in folder.checkpoints.iterdir():
        left.unlink() if left.is_symlink() else shutil.rmtree(left)
    folder.metrics_file.unlink(missing_ok=True)
    return run_together("lartpc_ds.advise.short_runs.rank", [program, str(folder.path)], ranks, variables)


@dataclass(frozen=True)
class ShortRun:
    """One way to run what was prepared in a folder, on the same events with the same network."""

    folder: RunFolder
    program: Program = "ours"
    layout: Layout | None = None
    """None: the layout that was prepared; otherwise one with a single tile group."""
    stages: Bounds = ()
    memory: MemoryConfig | None = None
    """None: the levers that were prepared."""

    def steps(self, variables: Mapping[str, str]) -> list[dict[str, Any]]:
        """Run it to its end; the metrics line of every step, with the mean loss and the fullest rank's peak."""
        with self._written():
            layout = Layout(**json.loads(self.folder.job_file.read_text())["layout"])
            ranks = run_ranks(self.folder, self.program, layout.world_size, variables)
        return [_of_all_ranks(lines) for lines in zip(*ranks, strict=True)]

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Inside, the folder's files say what this run changes."""
        folder = self.folder
        before = {path: path.read_text() for path in (folder.config_file, folder.ds_config_file, folder.job_file)}
        if self.memory is not None:
            tree = {**tomllib.loads(before[folder.config_file]), "memory": self.memory.model_dump(mode="json")}
            folder.config_file.write_text(tomli_w.dumps(tree))
        if self.layout is not None:
            job, ds = json.loads(before[folder.job_file]), json.loads(before[folder.ds_config_file])
            ds["train_batch_size"] *= self.layout.tiles
            folder.job_file.write_text(json.dumps({**job, "layout": asdict(self.layout), "stages": self.stages}))
            folder.ds_config_file.write_text(json.dumps(ds))
        try:
            yield
        finally:
            for path, text in before.items():
                path.write_text(text)


def _of_all_ranks(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    losses, peaks = [line["loss"] for line in lines], [line["peak_bytes"] for line in lines]
    return {**lines[0], "loss": statistics.mean(losses), "peak_bytes": max(peaks)}


def take_turns(
    runs: dict[str, ShortRun],
    repeats: int,
    say: Callable[[str], None],
    figures: Sequence[str] = ("step_seconds",),
    failures: dict[str, str] | None = None,
) -> dict[str, Samples]:
    """Measure every run so many times; its samples by its name.

    Args:
        runs: what to measure, by its name.
        repeats: fresh processes per run, for times and again for peaks.
        say: is told each result.
        figures: of a step's metrics line; the median over the timed steps of a process is a sample.
        failures: gets the reason of every run that fails, which is left out from then on; None: a failure is raised.
    """
    samples: dict[str, Samples] = {name: {figure: [] for figure in (*figures, "peak_bytes")} for name in runs}
    for repeat in range(repeats):
        for name in runs if repeat % 2 == 0 else reversed(runs):
            if failures is not None and name in failures:
                continue
            try:
                timed, pinned = (runs[name].steps(variables)[WARM_UP_STEPS:] for variables in ({}, PINNED))
            except RanksFailed as error:
                if failures is None:
                    raise
                failures[name] = str(error).rstrip().splitlines()[-1]
                say(f"{repeat + 1}/{repeats} {name}: failed: {failures[name]}")
                continue
            for figure in figures:
                samples[name][figure].append(statistics.median(line.get(figure, 0) for line in timed))
            samples[name]["peak_bytes"].append(max(line["peak_bytes"] for line in pinned))
            seconds, peak_bytes = (samples[name][figure][-1] for figure in ("step_seconds", "peak_bytes"))
            mib = f"{peak_bytes / 2**20:.0f} MiB per rank"
            say(f"{repeat + 1}/{repeats} {name}: {seconds:.3f} s per step, at most {mib}")
    return samples


def medians(samples: Mapping[str, Samples], figure: str) -> dict[str, float]:
    """The median of one figure for every run."""
    return {name: statistics.median(values[figure]) for name, values in samples.items()}


def by_figure(samples: Mapping[str, Samples]) -> dict[str, Samples]:
    """The same samples by figure first, and then by the name of the run."""
    figures = next(iter(samples.values()))
    return {figure: {name: values[figure] for name, values in samples.items()} for figure in figures}
