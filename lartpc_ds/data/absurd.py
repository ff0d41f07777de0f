"""What a survey says of the values of events: it refuses absurd values, and describes the others in a few sentences.

The limit is far from both sides. A pixel of the field's files holds at most 16384 counts of a digitiser, some 10^7
electrons or 10^8 eV. The squares of values below 10^9, summed over 10^8 pixels, are far below the 3.4 x 10^38 of
float32, so no norm overflows. Rejected: a tighter limit relative to other events, which would refuse a rare shower.
"""

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.data.files import EventFiles, Reader
from lartpc_ds.data.survey import Survey
from lartpc_ds.errors import UserError

__all__ = ["ABSURD", "LARGEST_HALF", "absurd_values", "check_survey", "said_of_values"]

ABSURD = 1e9
LARGEST_HALF = 65504.0
"""The largest number of fp16; a larger pixel is infinite there."""

_FAR = 1000.0
"""A value this many times the median of the events' largest values gets a sentence."""


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


def said_of_values(look: Survey, files: EventFiles, used: NDArray[np.bool_]) -> list[str]:
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


def _held_value(reader: Reader, index: int, plane: int, value: float) -> str:
    return f"{reader.path}: event {index}, plane {reader.plane_numbers[plane]} holds the value {value:g}"
