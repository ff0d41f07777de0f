"""Small runs for tests: random sparse events in larcv3's layout, and a prepared run folder over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.event import Event, EventId, Plane
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.data.schema import PARTICLE
from lartpc_ds.jobs.resolve import prepare_run
from lartpc_ds.training.prepare import absolute_paths

PDGS = (11, 22, 13)  # electron, gamma, muon

RUN_TOML = """
[data]
files = ["{files}"]
classes = ["electron", "gamma", "muon"]
split = {{ train = 0.7, validation = 0.3 }}
batch = 2

[model]
name = "resnet18"
width = 4

[train]
ds_config = "zero2_fp32"
max_steps = 4
"""


def random_event(index: int, shapes: Sequence[tuple[int, int]] = ((33, 49), (33, 49))) -> Event:
    """An event whose class (index modulo 3) shows in the amount of charge."""
    rng = np.random.default_rng([7, index])
    label = index % len(PDGS)
    planes = []
    for number, shape in enumerate(shapes):
        ids = np.sort(rng.choice(shape[0] * shape[1], size=20 + 60 * label, replace=False)).astype(np.int64)
        planes.append(Plane(number, shape, ids, rng.uniform(5, 50, len(ids)).astype(np.float32)))
    particles = np.zeros(1, PARTICLE)
    particles["pdg"] = PDGS[label]
    return Event(EventId("", index, 1, 1, index), tuple(planes), particles)


def write_events(path: Path, num_events: int, absurd: int | None = None) -> Path:
    """A file of random events, of which one may have absurd pixels."""
    with Larcv3Writer(path) as writer:
        for index in range(num_events):
            event = random_event(index)
            if index == absurd:
                event.planes[1].values[:] = 3e38
            writer.write(event)
    return path


def write_run_toml(path: Path, files: Path) -> Path:
    """A run TOML over `files`."""
    path.write_text(RUN_TOML.format(files=files))
    return path


def prepared(folder: Path, toml: Path, overrides: Sequence[str] = (), ranks: int = 1) -> RunFolder:
    """A run folder as `lartpc-ds train` leaves it to the ranks."""
    config, ds = recipes.load(str(toml), overrides)
    run = RunFolder(folder)
    run.claim()
    prepare_run(absolute_paths(config, Path.cwd()), ds, config.layout.fit(ranks, "ranks"), run, Console(quiet=True))
    return run
