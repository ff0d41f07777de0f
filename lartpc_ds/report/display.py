"""Event displays: every plane of one event, wire across and tick up, on one charge scale.

A track is one pixel wide in up to 3456 x 6048, a panel some 600 pixels: sampling the image would lose it, so pixels are
pooled to the canvas by their largest value. The view is the bounding box of the charge unless `full` is asked for, with
the same ticks in all planes, since drift time is what they share; noise does not count for the box. The scale
ends at a percentile of the charge, or one Bragg peak would darken every minimum-ionising track.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Event, Plane
from lartpc_ds.data.files import make_reader
from lartpc_ds.data.labels import truth_names
from lartpc_ds.data.truth import Primaries
from lartpc_ds.errors import UserError

__all__ = ["display_event", "draw_event", "truth_text"]

# a view's (first, stop) wire and tick
Range = tuple[int, int]

_PANEL_PIXELS = 700
_DPI = 150
_SCALE_PERCENTILE = 99.0
_MARGIN = 0.06
# a pulse lasts longer than noise stays above the zero suppression: fewer ticks in a row do not stretch the view
_PULSE_TICKS = 4


def truth_text(event: Event) -> str:
    """The truth in words, such as "numu CC, neutrino of 1.39 GeV" or "muon, 0.45 GeV/c"; empty without truth."""
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
    """Draw event `index` of `file` to `out`; UserError if there is no such event, or as the reader and `draw_event`."""
    reader = make_reader(file, product=product, truth=truth)
    if not 0 <= index < reader.num_events:
        raise UserError(f"{file}: no event {index}; it has {reader.num_events}, 0 to {reader.num_events - 1}")
    draw_event(reader.read(index), out, full=full)
    reader.close()


def draw_event(event: Event, out: Path, *, title: str | None = None, full: bool = False) -> None:
    """Write a PNG to `out`; `title` replaces the event's identity and truth. UserError if `out` exists."""
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten; give another name or remove it")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it first")
    # imported here: it takes half a second that no other command needs to wait for
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # the square root of the scale lifts faint tracks; a Figure without pyplot: no global state and no display server
    figure = Figure(figsize=(5.2 * len(event.planes) + 0.9, 5.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(event.planes), sharey=True, squeeze=False)[0]
    top = _scale_top(event)
    norm, colours = PowerNorm(0.5, vmin=0, vmax=top), colormaps["inferno"].with_extremes(bad="black")
    wires, ticks = _full_view(event) if full else _charge_view(event)
    for panel, plane, plane_wires in zip(panels, event.planes, wires, strict=True):
        image, extent = _pooled(plane, plane_wires, ticks)
        picture = panel.imshow(
            image.T, origin="lower", extent=extent, aspect="auto", interpolation="nearest", cmap=colours, norm=norm
        )
        panel.set_title(f"plane {plane.plane}: {np.count_nonzero(plane.values):,} pixels", fontsize=10)
        panel.set_xlabel("wire")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels[0].set_ylabel("time tick")
    figure.colorbar(picture, ax=list(panels), label="charge per pixel (units of the file)", extend="max", pad=0.01)
    figure.suptitle(_title(event) if title is None else title, fontsize=12)
    figure.savefig(out, format="png")


def _title(event: Event) -> str:
    identity = event.id
    numbers = (identity.run, identity.subrun, identity.event)
    name = f"{Path(identity.file).name}, event {identity.index}"
    if numbers != (-1, -1, -1):
        name = f"run {numbers[0]}, subrun {numbers[1]}, event {numbers[2]}   ({name})"
    truth = truth_text(event)
    return f"{truth}\n{name}" if truth else name


def _scale_top(event: Event) -> float:
    charge = np.concatenate([plane.values[plane.values > 0] for plane in event.planes])
    return float(np.percentile(charge, _SCALE_PERCENTILE)) if len(charge) else 1.0


def _full_view(event: Event) -> tuple[list[Range], Range]:
    """All wires of each plane, and the ticks they share."""
    return [(0, plane.shape[0]) for plane in event.planes], (0, max(plane.shape[1] for plane in event.planes))


def _charge_view(event: Event) -> tuple[list[Range], Range]:
    """The wires of each plane that saw a pulse, and the ticks of all pulses."""
    pulses = [np.divmod(_pulse_ids(plane), plane.shape[1]) for plane in event.planes]
    wires = [_view(wire, plane.shape[0]) for (wire, _), plane in zip(pulses, event.planes, strict=True)]
    return wires, _view(np.concatenate([tick for _, tick in pulses]), _full_view(event)[1][1])


def _pulse_ids(plane: Plane) -> NDArray[np.int64]:
    """First and last ids of every `_PULSE_TICKS` consecutive ticks with charge; all ids if there is no such run."""
    ids = plane.ids[plane.values != 0]
    reach = _PULSE_TICKS - 1
    starts = ids[:-reach][ids[reach:] - ids[:-reach] == reach]
    return np.concatenate([starts, starts + reach]) if len(starts) else ids


def _view(positions: NDArray[np.int64], size: int) -> Range:
    """The range that holds all positions and a margin, inside [0, size)."""
    if len(positions) == 0:
        return 0, size
    first, stop = int(positions.min()), int(positions.max()) + 1
    margin = 2 + int(_MARGIN * (stop - first))
    return max(first - margin, 0), min(stop + margin, size)


def _pooled(plane: Plane, wires: Range, ticks: Range) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """The view as at most `_PANEL_PIXELS` blocks an axis, each its largest value, NaN where empty; and its extent."""
    wire_block, tick_block = (-(-(stop - first) // _PANEL_PIXELS) for first, stop in (wires, ticks))
    shape = -(-(wires[1] - wires[0]) // wire_block), -(-(ticks[1] - ticks[0]) // tick_block)
    wire, tick = np.divmod(plane.ids, plane.shape[1])
    charged = (plane.values != 0) & (wire >= wires[0]) & (wire < wires[1]) & (tick >= ticks[0]) & (tick < ticks[1])
    blocks = (wire[charged] - wires[0]) // wire_block, (tick[charged] - ticks[0]) // tick_block
    image = np.full(shape, np.nan, np.float32)
    # fmax takes the number where the other is NaN
    np.fmax.at(image, blocks, plane.values[charged])
    return image, (wires[0], wires[0] + shape[0] * wire_block, ticks[0], ticks[0] + shape[1] * tick_block)
