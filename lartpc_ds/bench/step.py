"""`lartpc-ds bench step`: what our engine costs over plain PyTorch, in time and in memory, on one rank.

The two variants take turns in fresh processes, so that a machine that slows down slows both. Times come from unpinned
runs; peaks from runs of their own with the allocator's thresholds fixed, because glibc adapts them and the same step
then measures a third more or less.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lartpc_ds import recipes
from lartpc_ds.errors import UserError
from lartpc_ds.launch.command import check_devices
from lartpc_ds.launch.training import prepare_run
from lartpc_ds.layout import Layout
from lartpc_ds.prepare import absolute_paths
from lartpc_ds.runlog import RunFolder
from lartpc_ds.session import versions

__all__ = ["bench"]

_VARIANTS = ("ours", "plain")
_WARM_UP_STEPS = 1
_PINNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def bench(recipe: str, overrides: Sequence[str], *, repeats: int, steps: int) -> dict[str, Any]:
    """Measure; keys as the architecture page fixes them, and the samples behind the medians."""
    progress = Console(stderr=True)
    times: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    peaks: dict[str, list[int]] = {name: [] for name in _VARIANTS}
    with _run_folder(recipe, overrides, _WARM_UP_STEPS + steps, progress) as folder:
        for repeat in range(repeats):
            # the other one first every second time: whatever follows a pause may have an advantage
            for name in _VARIANTS if repeat % 2 == 0 else reversed(_VARIANTS):
                lines = _measure(name, folder, {})
                seconds = [line["step_seconds"] for line in lines[_WARM_UP_STEPS:]]
                times[name].append(statistics.median(seconds))
                peaks[name].append(_measure(name, folder, _PINNED)[-1]["peak_bytes"])
                peak_mib = peaks[name][-1] / 2**20
                progress.print(
                    f"{repeat + 1}/{repeats} {name}: {times[name][-1]:.3f} s a step, peak {peak_mib:.0f} MiB"
                )
    seconds_of = {name: statistics.median(values) for name, values in times.items()}
    bytes_of = {name: int(statistics.median(values)) for name, values in peaks.items()}
    return {
        **_circumstances("step", recipe, repeats),
        "ours_step_seconds": seconds_of["ours"],
        "plain_step_seconds": seconds_of["plain"],
        "ratio": statistics.median(a / b for a, b in zip(times["ours"], times["plain"], strict=True)),
        "ours_peak_bytes": bytes_of["ours"],
        "plain_peak_bytes": bytes_of["plain"],
        "memory_ratio": bytes_of["ours"] / bytes_of["plain"],
        "samples": {"step_seconds": times, "peak_bytes": peaks},
    }


@contextmanager
def _run_folder(recipe: str, overrides: Sequence[str], steps: int, progress: Console) -> Iterator[RunFolder]:
    config, ds = recipes.load(recipe, [*overrides, f"train.max_steps={steps}"])
    if ds["optimizer"]["type"] != "AdamW":
        raise UserError(f"optimizer.type = {ds['optimizer']['type']!r}: the plain loop of this bench has AdamW only")
    if config.train.accumulate != 1:
        raise UserError("train.accumulate: the plain loop of this bench does not accumulate; leave it at 1")
    check_devices(1, ds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.claim()
        # without held-out events the run ends after its steps
        everything = {
            "data": config.data.model_copy(
                update={"split": config.data.split.model_validate({"train": 1.0, "validation": 0.0})}
            )
        }
        prepare_run(absolute_paths(config.model_copy(update=everything), Path.cwd()), ds, Layout(), folder, progress)
        yield folder


def _measure(name: str, folder: RunFolder, variables: dict[str, str]) -> list[dict[str, Any]]:
    for left in folder.checkpoints.iterdir():
        left.unlink() if left.is_symlink() else shutil.rmtree(left)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-m", "lartpc_ds.bench.variants", name, str(folder.path)],
        env={**os.environ, "MASTER_PORT": port, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"variant {name} failed:\n{done.stderr[-4000:]}")
    lines: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return lines


def _circumstances(name: str, recipe: str, repeats: int) -> dict[str, Any]:
    """What every benchmark says about where it ran."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "bench": name,
        "recipe": recipe,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit or "unknown",
        "repeats": repeats,
    }
