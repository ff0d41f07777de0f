"""`lartpc-ds bench cosmictagger`: the model of a step beside public rates of up to 1700 GPUs. Nothing is run.

CosmicTagger was trained data-parallel on nodes of four A100. The public rates are of ever more GPUs with the same work
each, so a step is compute, the all-reduce of the gradients by the rates of the preset polaris, the wait for the slowest
GPU, and reading from one file system. Half of the points fit what is unknown, the other half is predicted. Several
forms of the wait are fitted, and the one nearest to the fitted points is taken; what the others give is told, too.
Rejected: a fitted bandwidth between nodes, which comes out as infinite; five points hold no more unknowns.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lartpc_ds.advise.bench.circumstances import circumstances
from lartpc_ds.costs import hardware
from lartpc_ds.costs.roofline import all_reduce_seconds
from lartpc_ds.costs.stragglers import shared_read_seconds, slowest_delay_seconds, slowest_of_normals

__all__ = ["FITTED_GPUS", "FORMS", "IMAGES_PER_SECOND", "Fit", "bench", "fit", "predicted_images_per_second"]

IMAGES_PER_SECOND: Mapping[int, float] = {
    4: 13.42,
    8: 26.4,
    16: 52.8,
    32: 101.7,
    64: 208.0,
    128: 350.7,
    256: 685.0,
    512: 1267.0,
    1024: 1965.0,
    1700: 3097.0,
}
"""The published rates by number of GPUs.

They are counted here as one image per GPU and step; more of them scale all terms of a step alike."""
FITTED_GPUS = (4, 8, 64, 256, 1024)
"""The points that fit the unknowns; no choice is made by the others."""
FORMS: Mapping[str, Sequence[str]] = {
    "messages alone": ("compute",),
    "normal spread, shared reading": ("compute", "spread", "read"),
    "rare delays, shared reading": ("compute", "delay", "read"),
}
"""The unknowns of each form of a step, none of them negative; with `delay` its share is an unknown, too."""

_GRADIENT_BYTES = 32 << 20
"""The size is not published with the rates; by the preset's rates twice of it is 2 ms of a step of 300 ms."""
_SHARES = np.geomspace(1e-5, 1, 501)
"""Which shares of late ranks are tried: a hundred in every decade."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The unknowns of one form, as some of the points fix them."""

    seconds: Mapping[str, float]
    """By unknown: `compute`, the `spread` of a GPU's step, its mean `delay`, the file system's time to `read` an image.

    An unknown that its form does not have is missing."""
    late_share: float
    """The probability that a GPU is delayed in a step."""
    error_rms: float
    """The root of the mean squared relative error of the fitted steps' times."""


def fit(images_per_second: Mapping[int, float], form: str) -> Fit:
    """Fit a form to rates by number of GPUs: least squares of relative errors, for each share of late GPUs."""
    unknowns = FORMS[form]
    times = np.array([gpus / rate for gpus, rate in images_per_second.items()])
    messages = np.array([_messages(gpus) for gpus in images_per_second])
    fits = []
    for share in _SHARES if "delay" in unknowns else [0.0]:
        terms = np.array([[_term(name, gpus, share) for name in unknowns] for gpus in images_per_second])
        found, error = _least_squares(terms / times[:, None], 1 - messages / times)
        fits.append(Fit(dict(zip(unknowns, found, strict=True)), float(share), error))
    return min(fits, key=lambda one: one.error_rms)


def predicted_images_per_second(gpus: int, known: Fit) -> float:
    """The rate that the model predicts for `gpus` GPUs, a multiple of four."""
    step = sum(value * _term(name, gpus, known.late_share) for name, value in known.seconds.items())
    return gpus / (step + _messages(gpus))


def _term(unknown: str, gpus: int, share: float) -> float:
    """What a second of an unknown adds to a step."""
    match unknown:
        case "spread":
            return _slowest(gpus)
        case "delay":
            return slowest_delay_seconds(gpus, share, 1.0)
        case "read":
            return shared_read_seconds(gpus, 1.0, 1.0)
        case _:
            return 1.0


_slowest = cache(slowest_of_normals)


@cache
def _messages(gpus: int) -> float:
    machine = hardware.load("polaris")
    return all_reduce_seconds(_GRADIENT_BYTES, gpus, machine.within, machine.across, machine.devices_per_node)


def _least_squares(terms: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[list[float], float]:
    """The factors of the columns, none negative, whose sum is nearest to what is wanted; and its error.

    The best factors are those of some of the columns alone, the others being zero, and there are few columns.
    """
    columns = range(terms.shape[1])
    best, least = np.zeros(len(columns)), math.inf
    for kept in itertools.chain(*(itertools.combinations(columns, count + 1) for count in columns)):
        factors = np.linalg.lstsq(terms[:, kept], wanted, rcond=None)[0]
        error = math.sqrt(np.mean((terms[:, kept] @ factors - wanted) ** 2))
        if min(factors) >= 0 and error < least:
            best, least = np.zeros(len(columns)), error
            best[list(kept)] = factors
    return best.tolist(), least


def _ratio(gpus: int, known: Fit) -> float:
    return predicted_images_per_second(gpus, known) / IMAGES_PER_SECOND[gpus]


def _worst(known: Fit, *, fitted: bool) -> float:
    """The largest relative error among the fitted points, or among the others."""
    return max(abs(_ratio(gpus, known) - 1) for gpus in IMAGES_PER_SECOND if (gpus in FITTED_GPUS) == fitted)


def bench() -> dict[str, Any]:
    """Fit every form on half of the points, and set the nearest one beside all of them."""
    fitted = {gpus: IMAGES_PER_SECOND[gpus] for gpus in FITTED_GPUS}
    fits = {form: fit(fitted, form) for form in FORMS}
    form = min(fits, key=lambda one: fits[one].error_rms)
    known = fits[form]
    return {
        **circumstances("cosmictagger", "cosmictagger", 1),
        "form": form,
        **_told(known),
        "points": [
            {
                "gpus": gpus,
                "measured_images_per_second": measured,
                "predicted_images_per_second": predicted_images_per_second(gpus, known),
                "ratio": _ratio(gpus, known),
                "fitted": gpus in FITTED_GPUS,
            }
            for gpus, measured in IMAGES_PER_SECOND.items()
        ],
        "error_max_fitted": _worst(known, fitted=True),
        "error_max_held_out": _worst(known, fitted=False),
        "forms": [
            {"form": name, **_told(one), "error_max_held_out": _worst(one, fitted=False)} for name, one in fits.items()
        ],
        "without": [_without(gpus, fitted, form) for gpus in FITTED_GPUS],
    }


def _told(known: Fit) -> dict[str, float]:
    """The unknowns with their units; `late_share` is told with a delay only."""
    told = {f"{name}_seconds": value for name, value in known.seconds.items()}
    if "delay" in known.seconds:
        told |= {
            "late_share": known.late_share,
            "delays_per_second": -float(np.log1p(-known.late_share)) / known.seconds["compute"],
        }
    return told | {"error_rms_fitted": known.error_rms}


def _without(gpus: int, fitted: Mapping[int, float], form: str) -> dict[str, float]:
    """What the fit becomes without one of its points, and how well it then predicts this point."""
    known = fit({other: rate for other, rate in fitted.items() if other != gpus}, form)
    return {"gpus": gpus, **_told(known), "ratio": _ratio(gpus, known)}
