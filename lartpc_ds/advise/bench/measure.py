"""What the benchmarks share: a run folder to measure in, and a variant measured in fresh processes.

Times come from unpinned runs; peaks from runs of their own with the allocator's thresholds fixed, because glibc adapts
them and the same step then measures a third more or less.
"""

import json
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.jobs.supervise.command import check_devices
from lartpc_ds.jobs.together import PINNED, run_together
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.training.prepare import absolute_paths
from lartpc_ds.training.session import versions

__all__ = ["PINNED", "WARM_UP_STEPS", "circumstances", "measure", "run_folder", "with_layout", "with_memory"]

WARM_UP_STEPS = 1


@contextmanager
def run_folder(recipe: str, overrides: Sequence[str], steps: int, progress: Console) -> Iterator[RunFolder]:
    """A prepared run of one rank that trains `steps` steps after the warm-up and evaluates nothing."""
    everything = "data.split={train=1.0,validation=0.0}"
    config, ds = recipes.load(recipe, [*overrides, f"train.max_steps={WARM_UP_STEPS + steps}", everything])
    check_devices(1, ds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        folder.claim()
        prepare_run(absolute_paths(config, Path.cwd()), ds, Layout(), folder, progress)
        yield folder


@contextmanager
def with_layout(folder: RunFolder, layout: Layout, stages: Bounds = ()) -> Iterator[None]:
    """Inside, the run has another layout of one tile group, or `stages`: the same events, batches and network."""
    before = folder.job_file.read_text()
    ds_before = folder.ds_config_file.read_text()
    job, ds = json.loads(before), json.loads(ds_before)
    ds["train_batch_size"] *= layout.tiles
    folder.job_file.write_text(json.dumps({**job, "layout": asdict(layout), "stages": stages}))
    folder.ds_config_file.write_text(json.dumps(ds))
    try:
        yield
    finally:
        folder.job_file.write_text(before)
        folder.ds_config_file.write_text(ds_before)


@contextmanager
def with_memory(folder: RunFolder, memory: MemoryConfig) -> Iterator[None]:
    """Inside, the run has other levers on its activations."""
    before = folder.config_file.read_text()
    tree = {**tomllib.loads(before), "memory": memory.model_dump(mode="json")}
    folder.config_file.write_text(tomli_w.dumps(tree))
    try:
        yield
    finally:
        folder.config_file.write_text(before)


def measure(variant: str, folder: RunFolder, ranks: int, variables: dict[str, str]) -> list[dict[str, Any]]:
    """Run one variant to its end in fresh processes that share the machine's cores; the lines of its steps."""
    for left in folder.checkpoints.iterdir():
        left.unlink() if left.is_symlink() else shutil.rmtree(left)
    folder.metrics_file.unlink(missing_ok=True)
    lines: list[dict[str, Any]] = run_together(
        "lartpc_ds.advise.bench.variants", [variant, str(folder.path)], ranks, variables
    )[0]
    return lines


def circumstances(name: str, recipe: str, repeats: int) -> dict[str, Any]:
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
