"""Draws docs/tiles.png, the picture in README.md: `python scripts/draw_tiles.py [OUT]`.

The picture shows simulated particles on one wire plane of MicroBooNE, the seams of 2 x 2 tiles, and, enlarged, the
columns of rank 0 that rank 1 reads in the first convolution of a ResNet: its halo. Seams and halo come from the
functions that cut an event for training.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lartpc_ds.data.detectors import detector
from lartpc_ds.data.event import EventId
from lartpc_ds.exact.grid.windows import Window, plan_axis
from lartpc_ds.layout import tile_bounds
from lartpc_ds.simulation.generate import simulate_event

OUT = Path(__file__).parents[1] / "docs" / "tiles.png"
PLANE = 2
PARTICLES = 2 * ("muon", "electron", "pion", "gamma", "kaon")
MOMENTUM_GEV = 1.5
SEED = 21
STEM = Window(kernel=7, stride=2, padding=3)
POOLED_PIXELS = 8  # per side of a square that becomes one pixel of the picture
ENLARGED_PIXELS = 28  # per side of the enlarged square
BACKGROUND, TEXT, SEAM, HALO = "#14171c", "#e8eaed", "#7fd1ff", "#7dff9b"


def main(out: Path) -> None:
    """Simulate the particles, draw both panels and write the PNG."""
    charge = simulated_plane()
    rows, cols = (tile_bounds(size, 2) for size in charge.shape)
    halo = plan_axis(STEM, cols, STEM.out_bounds(cols, charge.shape[1] // 2)).part(1, 0)
    assert halo is not None, "rank 1 needs columns of rank 0"
    top, left = busiest_row(charge, cols[1]) - ENLARGED_PIXELS // 2, cols[1] - ENLARGED_PIXELS // 2

    figure = Figure(figsize=(11, 4.5), dpi=150, facecolor=BACKGROUND, layout="constrained")
    whole, zoom = figure.subplots(1, 2, width_ratios=(charge.shape[1] / charge.shape[0], 1))
    pooled = charge.reshape(len(charge) // POOLED_PIXELS, POOLED_PIXELS, -1, POOLED_PIXELS).max(axis=(1, 3))
    show(whole, pooled, (0, charge.shape[1], charge.shape[0], 0))
    whole.set_title(f"One wire plane, {charge.shape[0]} wires x {charge.shape[1]} ticks, on 2 x 2 tiles")
    whole.axhline(rows[1], color=SEAM)
    for rank in range(4):
        row, col = divmod(rank, 2)
        whole.text(cols[col] + 90, rows[row] + 210, f"rank {rank}", color=SEAM, fontsize=13)
    frame = Rectangle((left - 70, top - 70), ENLARGED_PIXELS + 140, ENLARGED_PIXELS + 140, fill=False, edgecolor=TEXT)
    whole.add_patch(frame)

    enlarged = charge[top : top + ENLARGED_PIXELS, left : left + ENLARGED_PIXELS]
    show(zoom, enlarged, (left, left + ENLARGED_PIXELS, top + ENLARGED_PIXELS, top))
    zoom.set_title(f"In the frame: a halo of {halo[1] - halo[0]} columns")
    band = Rectangle((halo[0], top), halo[1] - halo[0], ENLARGED_PIXELS, edgecolor=HALO, facecolor=HALO + "38")
    zoom.add_patch(band)
    zoom.text(left + 0.7, top + 2, "rank 0", color=SEAM, fontsize=13)
    zoom.text(cols[1] + 0.7, top + 2, "rank 1", color=SEAM, fontsize=13)
    zoom.text(halo[0] - 0.5, top + ENLARGED_PIXELS // 2, "halo", color=HALO, fontsize=13, ha="right")
    for panel in (whole, zoom):
        panel.axvline(cols[1], color=SEAM)
    figure.savefig(out)


def simulated_plane() -> NDArray[np.float32]:
    """The charge of all particles on one plane, wires by ticks."""
    rng, microboone = np.random.default_rng(SEED), detector("microboone")
    total = np.zeros((microboone.planes[PLANE].wires, microboone.ticks), np.float32)
    for index, species in enumerate(PARTICLES):
        event = simulate_event(microboone, species, MOMENTUM_GEV, rng, EventId("", index, 1, 1, index))
        total.flat[event.planes[PLANE].ids] += event.planes[PLANE].values
    return total


def busiest_row(charge: NDArray[np.float32], seam: int) -> int:
    """The wire around which the most pixels with charge lie at the seam."""
    at_seam = (charge[:, seam - 10 : seam + 10] > 0).sum(axis=1)
    return int(np.argmax(np.convolve(at_seam, np.ones(ENLARGED_PIXELS), "same")))


def show(panel: Axes, charge: NDArray[np.float32], extent: tuple[int, int, int, int]) -> None:
    """Draw charge on a square-root scale, with axes that can be read on the dark background."""
    panel.imshow(np.sqrt(charge), cmap="inferno", vmin=0, vmax=7, extent=extent, aspect="auto", interpolation="nearest")
    panel.set_xlabel("time tick", color=TEXT)
    panel.set_ylabel("wire", color=TEXT)
    panel.tick_params(colors=TEXT)
    panel.title.set_color(TEXT)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
