"""What every benchmark says about where it ran, and the folder of its short runs."""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lartpc_ds.advise.short_runs.short_run import prepared, shortened
from lartpc_ds.config import recipes
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.layout import Layout
from lartpc_ds.training.prepare import absolute_paths
from lartpc_ds.training.session import versions

__all__ = ["circumstances", "run_folder"]


@contextmanager
def run_folder(recipe: str, overrides: Sequence[str], steps: int, progress: Console) -> Iterator[RunFolder]:
    """A prepared run of one rank that trains `steps` steps after the warm-up and evaluates nothing."""
    config, ds = recipes.load(recipe, overrides)
    config = shortened(absolute_paths(config, Path.cwd()), steps)
    with tempfile.TemporaryDirectory() as scratch:
        yield prepared(config, ds, Layout(), Path(scratch) / "run", progress)


def circumstances(name: str, recipe: str, repeats: int) -> dict[str, Any]:
    """The benchmark's name, and on which device and with which versions it ran."""
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
