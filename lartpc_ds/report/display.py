"""Event displays: every plane of one event, with wires across and ticks up, on one charge scale.

A track is one pixel wide in an image of up to 3456 x 6048, and a panel has some 600 pixels. Sampling the image would
lose the track, so pixels are pooled to the canvas by the value of largest magnitude. Unless `full` is asked for, the
view holds the charge of each plane but for a small share at each end. All planes show the same ticks, because they
share the drift time. Noise, which means pixels that are both alone and faint, does not count, and a plane says what it
does not show. Rejected: a view that holds long runs of ticks, because a file of summed ticks has long runs only where a
track is steep. The scale ends at a percentile of the charge, because one Bragg peak would darken every minimum-ionising
track, and it is diverging where a pixel is negative.
"""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Event, Plane
from lartpc_ds.data.files import make_reader
from lartpc_ds.data.labels import truth_names
from lartpc_ds.data.source import Range
from lartpc_ds.data.truth import Primaries
from lartpc_ds.errors import UserError

__all__ = ["display_event", "draw_event", "truth_text"]

_PANEL_PIXELS = 700
_DPI = 150
_SCALE_PERCENTILE = 99.0
_MARGIN = 0.06
_TAIL = 0.005
"""The share of a plane's charge without noise that a view may leave out at each end of an axis: two noisy pixels."""
_SHOWN = 0.95
"""A panel says so where its view has less than this share of a plane's charge, noise included."""


def truth_text(event: Event) -> str:
    """The truth in words, such as "numu CC, neutrino of 1.39 GeV" or "muon, 0.45 GeV/c"; empty where there is none."""
    if len(event.particles) == 0:
        return ""
    primary = Primaries.of_rows(event.particles[:1], np.array([True]))
    name = truth_names(primary)[0]
    if abs(int(primary.pdg[0])) in (12, 14, 16):
        current = {0: " CC", 1: ""}.get(int(primary.current_type[0]), "")
        return f"{name}{current}, neutrino of {primary.energy_gev[0]:.2f} GeV"
    return f"{name}, {primary.momentum_gev[0]:.2f} GeV/c"


def display_event(
    file: Path, index: int, out: Path, *, product: str = "auto", truth: str = "auto", full: bool = False
) -> None:
    """Draw event `index` of `file` to `out`.

    Raises:
        UserError: there is no such event, or as the reader and `draw_event`.
    """
    reader = make_reader(file, product=product, truth=truth)
    if not 0 <= index < reader.num_events:
        raise UserError(f"{file}: no event {index}; it has {reader.num_events}, 0 to {reader.num_events - 1}")
    draw_event(reader.read(index), out, full=full)
    reader.close()


def draw_event(event: Event, out: Path, *, title: str | None = None, full: bool = False) -> None:
    """Write a PNG to `out`; a `title` replaces the event's identity and truth.

    Raises:
        UserError: `out` exists, or its folder does not.
    """
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten; give another name or remove it")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it first")
    # imported here, because it takes half a second, for which no other command should wait
    from matplotlib import colormaps
    from matplotlib.colors import FuncNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # a Figure without pyplot needs no global state and no display server
    figure = Figure(figsize=(5.2 * len(event.planes) + 0.9, 5.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(event.planes), sharey=True, squeeze=False)[0]
    top, signed = _scale_top(event), any((plane.values < 0).any() for plane in event.planes)
    # the square root of the scale lifts faint tracks
    norm = FuncNorm((_signed_root, _signed_square), vmin=-top if signed else 0, vmax=top)
    # both colour maps are dark at 0
    colours = colormaps["berlin" if signed else "inferno"].with_extremes(bad="black")
    wires, ticks = _full_view(event) if full else _charge_view(event)
    for panel, plane, plane_wires in zip(panels, event.planes, wires, strict=True):
        image, extent = _pooled(plane, plane_wires, ticks)
        picture = panel.imshow(
            image.T, origin="lower", extent=extent, aspect="auto", interpolation="nearest", cmap=colours, norm=norm
        )
        panel.set_title(_plane_title(plane, plane_wires, ticks), fontsize=10)
        panel.set_xlabel("wire")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels[0].set_ylabel("time tick")
    extend = "both" if signed else "max"
    figure.colorbar(picture, ax=list(panels), label="charge per pixel (units of the file)", extend=extend, pad=0.01)
    figure.suptitle(_title(event) if title is None else title, fontsize=12)
    figure.savefig(out, format="png")


def _title(event: Event) -> str:
    who = event.id
    name = f"{Path(who.file).name}, event {who.index}"
    if who.has_numbers:
        name = f"run {who.run}, subrun {who.subrun}, event {who.event}   ({name})"
    truth = truth_text(event)
    return f"{truth}\n{name}" if truth else name


def _plane_title(plane: Plane, wires: Range, ticks: Range) -> str:
    """The plane's number of pixels, and the share of its charge that is not in view, unless that is small."""
    title = f"plane {plane.plane}: {np.count_nonzero(plane.values):,} pixels"
    if negative := int(np.sum(plane.values < 0)):
        title += f", {negative:,} negative"
    shown = _shown(plane, wires, ticks)
    return title if shown >= _SHOWN else f"{title}\n{1 - shown:.0%} of the charge, faint single pixels, is not in view"


def _shown(plane: Plane, wires: Range, ticks: Range) -> float:
    """The share of a plane's charge, by magnitude, that the view shows."""
    charge = np.abs(plane.values).astype(np.float64)
    total = float(charge.sum())
    return float(charge[_inside(plane, wires, ticks)].sum()) / total if total else 1.0


def _inside(plane: Plane, wires: Range, ticks: Range) -> NDArray[np.bool_]:
    wire, tick = np.divmod(plane.ids, plane.shape[1])
    return (wire >= wires[0]) & (wire < wires[1]) & (tick >= ticks[0]) & (tick < ticks[1])


def _signed_root(charge: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(charge) * np.sqrt(np.abs(charge))


def _signed_square(root: NDArray[np.float64]) -> NDArray[np.float64]:
    return root * np.abs(root)


def _scale_top(event: Event) -> float:
    charge = np.concatenate([np.abs(plane.values[plane.values != 0]) for plane in event.planes])
    return float(np.percentile(charge, _SCALE_PERCENTILE)) if len(charge) else 1.0


def _full_view(event: Event) -> tuple[list[Range], Range]:
    """All wires of each plane, and all ticks."""
    return [(0, plane.shape[0]) for plane in event.planes], (0, max(plane.shape[1] for plane in event.planes))


def _charge_view(event: Event) -> tuple[list[Range], Range]:
    """The wires of each plane, and the ticks of all planes, that hold all charge but noise and small tails."""
    wires, ticks = [], []
    for plane in event.planes:
        kept = np.flatnonzero(plane.values)[_structure(plane)]
        wire, tick = np.divmod(plane.ids[kept], plane.shape[1])
        charge = np.abs(plane.values[kept]).astype(np.float64)
        wires.append(_with_margin(_core(wire, charge), plane.shape[0]))
        ticks.append(_core(tick, charge))
    cores = [core for core in ticks if core is not None]
    bounds = (min(first for first, _ in cores), max(stop for _, stop in cores)) if cores else None
    return wires, _with_margin(bounds, _full_view(event)[1][1])


def _structure(plane: Plane) -> NDArray[np.bool_]:
    """Which pixels with charge are not noise: they touch another pixel, or are as bright as half of those that do."""
    charged = plane.values != 0
    wire, tick = np.divmod(plane.ids[charged], plane.shape[1])
    occupied = np.zeros((plane.shape[0] + 2, plane.shape[1] + 2), bool)  # with an empty border
    occupied[wire + 1, tick + 1] = True
    touching = np.zeros(len(wire), bool)
    for down, right in itertools.product(range(3), range(3)):
        if (down, right) != (1, 1):
            touching |= occupied[wire + down, tick + right]
    if not touching.any():
        return ~touching
    charge = np.abs(plane.values[charged])
    bright: NDArray[np.bool_] = charge >= np.median(charge[touching])
    return touching | bright


def _core(positions: NDArray[np.int64], charge: NDArray[np.float64]) -> Range | None:
    """The range that leaves out less than `_TAIL` of the charge at each end; None without charge."""
    if len(positions) == 0:
        return None
    order = np.argsort(positions, kind="stable")
    below = np.cumsum(charge[order])
    first = np.searchsorted(below, _TAIL * below[-1], side="right")
    last = np.searchsorted(below, (1 - _TAIL) * below[-1])
    return int(positions[order[first]]), int(positions[order[last]]) + 1


def _with_margin(core: Range | None, size: int) -> Range:
    """The core with a margin, inside [0, size); without a core it is the whole range."""
    if core is None:
        return 0, size
    margin = 2 + int(_MARGIN * (core[1] - core[0]))
    return max(core[0] - margin, 0), min(core[1] + margin, size)


def _pooled(plane: Plane, wires: Range, ticks: Range) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """The view as at most `_PANEL_PIXELS` blocks per axis, and its extent in wires and ticks.

    A block has the value of largest magnitude of its pixels, or NaN where no pixel has charge.
    """
    wire_block, tick_block = (-(-(stop - first) // _PANEL_PIXELS) for first, stop in (wires, ticks))
    shape = -(-(wires[1] - wires[0]) // wire_block), -(-(ticks[1] - ticks[0]) // tick_block)
    charged = (plane.values != 0) & _inside(plane, wires, ticks)
    wire, tick = np.divmod(plane.ids[charged], plane.shape[1])
    blocks = (wire - wires[0]) // wire_block, (tick - ticks[0]) // tick_block
    highest, lowest = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    # fmax and fmin take the number where the other value is NaN
    np.fmax.at(highest, blocks, plane.values[charged])
    np.fmin.at(lowest, blocks, plane.values[charged])
    image = np.where(np.abs(lowest) > np.abs(highest), lowest, highest)
    return image, (wires[0], wires[0] + shape[0] * wire_block, ticks[0], ticks[0] + shape[1] * tick_block)
