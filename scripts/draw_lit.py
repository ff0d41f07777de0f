"""Draws docs/lit.png, the picture in docs/lit.md: `python scripts/draw_lit.py [OUT]`.

The picture shows simulated particles on one wire plane of MicroBooNE, cut into patches. Patches that hold charge are
bright, patches that charge reaches in later blocks of a ResNet are darker, and all others are dark, of which one of
each kind is computed. The patches of every block come from the plan and the rules by which a network trains.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from lartpc_ds.data.detectors import detector
from lartpc_ds.data.event import Event, EventId
from lartpc_ds.data.images import Preprocessing, densify
from lartpc_ds.data.lit_shares import AUTO_PIXELS
from lartpc_ds.exact.grid.patches import Patches
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.exact.memory.lit import Lit, Placed
from lartpc_ds.exact.memory.lit_plan import plan_lit
from lartpc_ds.exact.trace.dry_run import dry_run, shadow_of
from lartpc_ds.exact.trace.imitation import images_of
from lartpc_ds.exact.trace.modules import announced
from lartpc_ds.models.build import blocks, build_model
from lartpc_ds.simulation.generate import simulate_event

OUT = Path(__file__).parents[1] / "docs" / "lit.png"
PLANE = 2
PARTICLES = ("muon", "electron", "pion")
MOMENTUM_GEV = 1.0
SEED = 21
THRESHOLD, ISOLATED = 5.0, 3  # data.threshold of the recipe microboone-full, and data.isolated of docs/lit.md
SHOWN = ("layer1_1", "layer3_1")  # the last blocks of layer1 and layer3
ENLARGED_PATCHES = (12, 16)  # rows and columns of the enlarged region
BACKGROUND, TEXT, GRID = "#14171c", "#e8eaed", "#2a3038"
COLOURS = ("#1a1e25", "#1f4a63", "#2f86ad", "#a3dcf5")  # dark, reached at each shown block, lit at the image
CHARGE = "#ff9d2e"


def main(out: Path) -> None:
    """Simulate the particles, follow their charge through the network, draw both panels and write the PNG."""
    lit = lit_pixels()
    maps = followed(lit)
    levels = np.sum([holds_charge(patches) for patches in maps], axis=0)
    (height, width), extent = maps[0].shape, (0, lit.shape[1], lit.shape[0], 0)
    top, left = brightest(levels == len(COLOURS) - 1)

    figure = Figure(figsize=(11, 4.8), dpi=130, facecolor=BACKGROUND, layout="constrained")
    whole, zoom = figure.subplots(1, 2, width_ratios=(1, 1))
    for panel in (whole, zoom):
        show(panel, levels, (0, levels.shape[1] * width, levels.shape[0] * height, 0))
    whole.set(xlim=extent[:2], ylim=extent[2:])
    whole.set_title(f"One wire plane in patches of {height} x {width} pixels")
    size = ENLARGED_PATCHES[0] * height, ENLARGED_PATCHES[1] * width
    whole.add_patch(Rectangle((left * width, top * height), size[1], size[0], fill=False, edgecolor=TEXT))
    zoom.set(xlim=(left * width, left * width + size[1]), ylim=(top * height + size[0], top * height))
    zoom.set_title("In the frame, with every lit pixel")
    for row in range(top, top + ENLARGED_PATCHES[0]):
        zoom.axhline(row * height, color=GRID, linewidth=0.7)
    for col in range(left, left + ENLARGED_PATCHES[1]):
        zoom.axvline(col * width, color=GRID, linewidth=0.7)
    pixels = np.ma.masked_equal(lit, 0)
    zoom.imshow(pixels, cmap=ListedColormap([CHARGE]), extent=extent, aspect="auto", interpolation="nearest")
    legend(figure, levels, len(maps[-1]) - int((levels > 0).sum()))
    figure.savefig(out)


def lit_pixels() -> NDArray[np.bool_]:
    """Which pixels of one plane the particles light, after the threshold and without isolated ones."""
    rng, microboone = np.random.default_rng(SEED), detector("microboone")
    shape = microboone.planes[PLANE].wires, microboone.ticks
    lit = np.zeros(shape, np.bool_)
    for index, species in enumerate(PARTICLES):
        event = simulate_event(microboone, species, MOMENTUM_GEV, rng, EventId("", index, 1, 1, index))
        alone = Event(event.id, (event.planes[PLANE],), event.particles)
        lit |= densify(alone, Preprocessing(shape, threshold=THRESHOLD, isolated=ISOLATED))[0] != 0
    return lit


def followed(lit: NDArray[np.bool_]) -> list[Patches]:
    """The patches of the image, and of what the blocks of `SHOWN` make of it.

    A ResNet-18 runs on tensors without numbers, whose patches are those of a real run.
    """
    model = shadow_of(build_model("resnet18", planes=1, num_classes=2))
    plan = plan_lit(model, AUTO_PIXELS, "never", (1, *lit.shape))
    patches = Patches(lit[None], plan.rows, plan.cols)
    follower, sequence = Lit(Tiles(1, 1, Alone(), Alone(), Alone())), blocks(model)
    with dry_run(model, followed=True), announced(model, follower.around):
        x, placed, made = images_of(model, (len(patches), 1, *patches.shape)), Placed(patches), {}
        for name, block in sequence[:-1]:  # the head gives no map
            x, placed = follower.run_block(block, x, placed)
            made[name] = placed
    return [patches, *(placed.patches for placed in map(made.get, SHOWN) if placed is not None)]


def holds_charge(patches: Patches) -> NDArray[np.bool_]:
    """Whether charge has reached the patch at each place of a single event's map."""
    starts = patches.rows.starts, patches.cols.starts
    in_rows = np.logical_or.reduceat(patches.lit[0], starts[0], axis=0)
    held: NDArray[np.bool_] = np.logical_or.reduceat(in_rows, starts[1], axis=1)
    return held


def brightest(bright: NDArray[np.bool_]) -> tuple[int, int]:
    """The first row and column of the region of `ENLARGED_PATCHES` that holds the most bright patches."""
    down, across = ENLARGED_PATCHES
    windows = np.lib.stride_tricks.sliding_window_view(bright, (down, across)).sum(axis=(2, 3))
    row, col = np.unravel_index(np.argmax(windows), windows.shape)
    return int(row), int(col)


def show(panel: Axes, levels: NDArray[np.int64], extent: tuple[int, int, int, int]) -> None:
    """Draw the level of every patch, with axes that can be read on the dark background."""
    panel.imshow(
        levels, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=3.5, extent=extent, aspect="auto", interpolation="nearest"
    )
    panel.set_xlabel("time tick", color=TEXT)
    panel.set_ylabel("wire", color=TEXT)
    panel.tick_params(colors=TEXT)
    panel.title.set_color(TEXT)


def legend(figure: Figure, levels: NDArray[np.int64], kinds: int) -> None:
    """Say what each colour means, which share of all patches is as bright or brighter, and how many kinds are dark."""
    shares = [f"{(levels >= level).mean():.1%}" for level in range(1, len(COLOURS))]
    texts = (
        f"dark ({(levels == 0).mean():.1%}, held as {kinds})",
        f"reached after layer3 ({shares[0]})",
        f"after layer1 ({shares[1]})",
        f"holds charge ({shares[2]} of all patches)",
    )
    handles = [Patch(facecolor=CHARGE, label="lit pixel")]
    handles += [
        Patch(facecolor=colour, edgecolor=TEXT, linewidth=0.4, label=text)
        for colour, text in reversed([*zip(COLOURS, texts, strict=True)])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, labelcolor=TEXT, fontsize=9)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
