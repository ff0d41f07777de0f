from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lartpc_ds.data.event import Event, EventId, Plane
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.data.schema import PARTICLE

SHAPES = ((6, 10), (9, 10))


@pytest.fixture
def make_event() -> Callable[..., Event]:
    """A small event of random pixels; `number` seeds it and is its event number."""

    def make(number: int, shapes: tuple[tuple[int, int], ...] = SHAPES, pdg: int = 13, num_pixels: int = 20) -> Event:
        rng = np.random.default_rng(number)
        planes = []
        for plane, (wires, ticks) in enumerate(shapes):
            ids = np.sort(rng.choice(wires * ticks, num_pixels, replace=False)).astype(np.int64)
            planes.append(Plane(plane, (wires, ticks), ids, rng.normal(20, 8, num_pixels).astype(np.float32)))
        particles = np.zeros(2, PARTICLE)
        particles["pdg"], particles["pz"], particles["current_type"] = (pdg, 11), (0.3, 0.1), -1
        particles["process"] = b"primary"
        return Event(EventId("made", number, 1, 0, number), tuple(planes), particles)

    return make


@pytest.fixture
def write_file(tmp_path: Path, make_event: Callable[..., Event]) -> Callable[..., Path]:
    """Write `num_events` small events, numbered from `first`, to a new file."""

    def write(name: str = "small.h5", num_events: int = 3, first: int = 0, **options: object) -> Path:
        path = tmp_path / name
        with Larcv3Writer(path) as writer:
            for number in range(first, first + num_events):
                writer.write(make_event(number, **options))
        return path

    return write
