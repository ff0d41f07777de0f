"""A survey looks at every event before training: the extent of its values, and a digest by which copies are found.

Where `data.isolated` is on, it also counts what that key drops, and where `memory.lit_block` is on, how much of each
event's image and maps is lit, from the same voxels.

Every voxel is read once, in blocks of a bounded size, by several processes where that pays. Rejected: looking at each
event when it is first trained on, which finds a broken event after hours, and a broken held-out event never.

A survey refuses absurd values, and its limit is far from both sides. A pixel of the field's files holds at most 16384
counts of a digitiser, some 10^7 electrons or 10^8 eV. The squares of values below 10^9, summed over 10^8 pixels, are
far below the 3.4 x 10^38 of float32, so no norm overflows. Rejected: a tighter limit relative to other events, which
would refuse a rare shower.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.event import Plane, Voxels
from lartpc_ds.data.files import Block, EventFiles, Reader
from lartpc_ds.data.images import Preprocessing, isolated_pixels
from lartpc_ds.data.lit_shares import Cells, Cut
from lartpc_ds.data.processes import map_in_processes
from lartpc_ds.errors import UserError

__all__ = [
    "ABSURD",
    "EXTENT",
    "LARGEST_HALF",
    "LIT",
    "Survey",
    "absurd_values",
    "check_survey",
    "describe_isolated",
    "describe_values",
    "survey",
]

EXTENT = np.dtype([("pixels", "<i8"), ("charge", "<f8"), ("lowest", "<f4"), ("highest", "<f4")])
"""The extent of one plane of one event: non-zero pixels, sum, smallest and largest value; zeros without pixels."""

LIT = np.dtype([("pixels", "<i8"), ("charge", "<f8"), ("isolated", "<i8"), ("isolated_charge", "<f8")])
"""The lit pixels of one plane of the image that an event becomes, and those that `data.isolated` drops of them.

A charge here is the sum of absolute values, so that the two lobes of a raw pulse do not cancel.
"""

_Shapes = tuple[tuple[int, int], ...]
"""The (wires, ticks) of each plane."""

_BLOCK_VOXELS = 1_000_000  # 16 MB of a larcv3 file
_BLOCK_EVENTS = 10_000
_PARALLEL_VOXELS = 20_000_000  # one process takes some seconds for these; further processes take a second to start
_COPY_PIXELS = 8
"""An event of fewer pixels may equal another by chance."""

ABSURD = 1e9
LARGEST_HALF = 65504.0
"""The largest number of fp16; a larger pixel is infinite there."""

_FAR = 1000.0
"""A value this many times the median of the events' largest values gets a sentence."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen of all events, in order; for an event that was left out or is damaged this is zeros.

    `extents` is (events, planes) of `EXTENT`, and `lit` (events, planes) of `LIT`, zeros where `data.isolated` is off.
    `shares` is (events, 1 + maps), what charge lights of the patches of the image and of each map (`lit_shares.Cut`);
    there are none where `memory.lit_block` is off. `digests` are equal for events of the same pixels, and empty for
    events of too few pixels. `faults` says what is wrong with a damaged event, by its position.
    """

    extents: NDArray[np.void]
    lit: NDArray[np.void]
    digests: NDArray[np.bytes_]
    faults: dict[int, str]
    shares: NDArray[np.float64]

    def part(self, start: int, stop: int) -> "Survey":
        """The survey of the events [start, stop), with positions counted from `start`."""
        faults = {place - start: fault for place, fault in self.faults.items() if start <= place < stop}
        mine = slice(start, stop)
        return Survey(self.extents[mine], self.lit[mine], self.digests[mine], faults, self.shares[mine])


def survey(
    readers: Sequence[Reader],
    wanted: NDArray[np.bool_],
    workers: int = 1,
    on_events: Callable[[int], None] = lambda _: None,
    *,
    pre: Preprocessing | None = None,
    cut: Cut | None = None,
) -> Survey:
    """Look at the `wanted` events of all files; `on_events` gets the number of events that have been passed.

    What `data.isolated` drops is counted where `pre` has it on, and the shares of what is lit where there is a `cut` of
    the image of `pre`; every plane must then fit that image.
    """
    result = _nothing(len(wanted), readers[0].num_planes, cut)
    blocks = list(_blocks(readers, wanted))
    if sum(int(reader.num_voxels.sum()) for reader in readers) < _PARALLEL_VOXELS:
        workers = 1
    look = partial(_look, pre=pre if pre is not None and (pre.isolated or cut is not None) else None, cut=cut)
    looks = map_in_processes(look, (block for _, _, block in blocks), max(min(workers, len(blocks)), 1))
    for (start, stop, _), part in zip(blocks, looks, strict=True):
        mine = wanted[start:stop]
        result.extents[start:stop][mine] = part.extents[mine]
        result.lit[start:stop][mine] = part.lit[mine]
        result.digests[start:stop][mine] = part.digests[mine]
        result.shares[start:stop][mine] = part.shares[mine]
        result.faults.update({start + place: fault for place, fault in part.faults.items() if mine[place]})
        on_events(stop)
    return result


def _nothing(events: int, planes: int, cut: Cut | None) -> Survey:
    """The survey of events of which nothing was seen."""
    extents, lit = (np.zeros((events, planes), kind) for kind in (EXTENT, LIT))
    shares = np.zeros((events, 0 if cut is None else 1 + len(cut.reaches)))
    return Survey(extents, lit, np.zeros(events, "S16"), dict[int, str](), shares)


def _blocks(readers: Sequence[Reader], wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int, tuple[Block, _Shapes]]]:
    """The first position, the stop, and (block, shapes of planes) of every part of a file that has a wanted event."""
    offset = 0
    for reader in readers:
        stops = np.cumsum(reader.num_voxels)
        first = 0
        while first < reader.num_events:
            before = int(stops[first - 1]) if first else 0
            stop = int(np.searchsorted(stops, before + _BLOCK_VOXELS, side="right"))
            stop = min(max(stop, first + 1), first + _BLOCK_EVENTS, reader.num_events)
            if wanted[offset + first : offset + stop].any():
                yield offset + first, offset + stop, (reader.block(first, stop), reader.plane_shapes)
            first = stop
        offset += reader.num_events


def _look(part: tuple[Block, _Shapes], pre: Preprocessing | None, cut: Cut | None) -> Survey:
    block, shapes = part
    voxels = block.read()
    found = _nothing(len(voxels.counts), voxels.counts.shape[1], cut)
    extents = found.extents
    filled = voxels.counts.ravel() > 0
    if filled.any():
        # planes without voxels take no room, so each other plane begins where the plane before it ends
        starts = (np.cumsum(voxels.counts.ravel()) - voxels.counts.ravel())[filled]
        rows = extents.reshape(-1)
        rows["pixels"][filled] = np.add.reduceat((voxels.values != 0).astype(np.int64), starts)
        rows["charge"][filled] = np.add.reduceat(voxels.values, starts, dtype=np.float64)
        rows["lowest"][filled] = np.minimum.reduceat(voxels.values, starts)
        rows["highest"][filled] = np.maximum.reduceat(voxels.values, starts)
    found.digests[:] = _digests(voxels)
    if pre is not None:
        _look_at_image(voxels, shapes, pre, cut, found)
    return replace(found, faults=voxels.faults)


def _look_at_image(voxels: Voxels, shapes: _Shapes, pre: Preprocessing, cut: Cut | None, found: Survey) -> None:
    """Fill in what is lit in the images that the events become."""
    stop = 0
    for event, counts in enumerate(voxels.counts.tolist()):
        kept = []
        for number, count in enumerate(counts):
            start, stop = stop, stop + count
            plane = Plane(number, shapes[number], voxels.ids[start:stop], voxels.values[start:stop])
            with np.errstate(over="ignore"):  # absurd values may overflow in a sum; they are refused after the survey
                (flat, values), dropped = isolated_pixels(plane, pre)
            kept.append(flat[~dropped])
            if pre.isolated:
                charge = np.abs(values, dtype=np.float64)
                of_plane = len(values), charge.sum(), np.count_nonzero(dropped), charge[dropped].sum()
                found.lit[event, number] = of_plane
        if cut is not None:
            cells = Cells.of_pixels(*np.divmod(np.concatenate(kept), pre.shape[1]))
            found.shares[event] = cut.shares(cells)


def _digests(voxels: Voxels) -> NDArray[np.bytes_]:
    digests = np.zeros(len(voxels.counts), "S16")
    stop = 0
    for event, counts in enumerate(voxels.counts):
        start, stop = stop, stop + int(counts.sum())
        if stop - start >= _COPY_PIXELS:
            digest = hashlib.blake2b(counts.tobytes(), digest_size=8)
            digest.update(voxels.ids[start:stop].data)
            digest.update(voxels.values[start:stop].data)
            digests[event] = digest.hexdigest().encode()
    return digests


def check_survey(
    look: Survey, files: EventFiles, saturate: float | None, threshold: float, limit: float = ABSURD
) -> None:
    """Refuse damaged events, and absurd values that neither `data.saturate` nor `data.threshold` takes out.

    Raises:
        UserError: naming the first damaged event, or the first absurd value, and how many events have one.
    """
    if look.faults:
        first, *others = (look.faults[position] for position in sorted(look.faults))
        more = f" ({len(others)} more event(s) are damaged; lartpc-ds inspect lists them)" if others else ""
        raise UserError(f"{first}{more}; mend the file, or leave it out of data.files")
    high = (look.extents["highest"] > limit) & (saturate is None)
    low = (look.extents["lowest"] < -limit) & (threshold <= 0)
    if not (high | low).any():
        return
    event, plane = np.argwhere(high | low)[0].tolist()
    number, index = files.locate(event)
    end = "highest" if high[event, plane] else "lowest"
    finding = _held_value(files.readers[number], index, plane, look.extents[end][event, plane])
    fix = (
        "data.saturate = X bounds values above X" if high[event, plane] else "data.threshold above 0 drops values below"
    )
    why = f"{limit:g}, the largest number of fp16" if limit == LARGEST_HALF else f"{limit:g}"
    raise UserError(
        f"{finding}; expected at most {why} ({int((high | low).any(axis=1).sum())} event(s) have such a value): "
        f"mend the file, or {fix}"
    )


def absurd_values(look: Survey, reader: Reader) -> list[str]:
    """A sentence for each plane of one file's events that holds an absurd value."""
    return [
        f"{_held_value(reader, event, plane, look.extents[end][event, plane])}; expected at most {ABSURD:g}"
        for end in ("lowest", "highest")
        for event, plane in np.argwhere(np.abs(look.extents[end]) > ABSURD).tolist()
    ]


def describe_values(look: Survey, files: EventFiles, used: NDArray[np.bool_]) -> list[str]:
    """Sentences for the user about each plane's values, empty events, negative pixels and values far from others."""
    extents = look.extents[used]
    pixels, lowest, highest = (extents[name] for name in ("pixels", "lowest", "highest"))
    filled = pixels > 0
    if not filled.any():
        return [f"none of {len(extents)} events has a pixel"]
    planes = ", ".join(
        f"{lowest[filled[:, plane], plane].min():.6g} to {highest[filled[:, plane], plane].max():.6g} in plane {number}"
        for plane, number in enumerate(files.readers[0].plane_numbers)
        if filled[:, plane].any()
    )
    lines = [f"pixels hold {planes}"]
    if empty := int((~filled).all(axis=1).sum()):
        lines.append(f"{empty} of {len(extents)} events have no pixel")
    if negative := int((lowest < 0).any(axis=1).sum()):
        lines.append(f"{negative} of {len(extents)} events have negative pixels")
    typical = float(np.median(highest.max(axis=1)[filled.any(axis=1)]))
    largest = look.extents["highest"].max(axis=1)
    position = int(np.argmax(largest))
    if typical > 0 and largest[position] > _FAR * typical:
        number, index = files.locate(position)
        plane = int(np.argmax(look.extents["highest"][position]))
        lines.append(
            f"{_held_value(files.readers[number], index, plane, largest[position])}, "
            f"{largest[position] / typical:.0f} times the median of the events' largest ({typical:.6g}); data.saturate "
            "bounds such values"
        )
    return lines


def describe_isolated(looks: Sequence[Survey], fewest: int) -> str:
    """A sentence for the user about what `data.isolated` = `fewest` drops of all events that were looked at."""
    key = f"data.isolated = {fewest}"
    lit, charge, dropped, dropped_charge = (
        np.concatenate([look.lit[name].sum(axis=1) for look in looks]) for name in LIT.names or ()
    )
    if not lit.any():
        return f"{key} drops nothing, because no pixel is lit after data.threshold"
    of_pixels, of_charge = (
        100 * float(part.sum()) / float(whole.sum()) for part, whole in ((dropped, lit), (dropped_charge, charge))
    )
    empty = np.count_nonzero((lit > 0) & (dropped == lit))
    left = f", and leaves {empty} of {np.count_nonzero(lit)} events without a lit pixel" if empty else ""
    return f"{key} drops {of_pixels:.3g} % of the lit pixels with {of_charge:.3g} % of the charge{left}"


def _held_value(reader: Reader, index: int, plane: int, value: float) -> str:
    return f"{reader.path}: event {index}, plane {reader.plane_numbers[plane]} holds the value {value:g}"
