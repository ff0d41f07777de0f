"""`lartpc-ds bench cosmictagger`: the model of messages beside public rates of up to 1700 GPUs. Nothing is run.

CosmicTagger was trained data-parallel on nodes of four A100. The public rates are of ever more GPUs with the same work
each, so a step is compute + all-reduce of the gradients, and `costs.roofline.all_reduce_seconds` says how the second
term grows. Two unknowns, what a GPU computes and what the network between the nodes carries, are fixed by the points of
4 and 8 GPUs; all others are predictions. Rejected: fitting every point, which would hide where the model ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lartpc_ds.advise.bench.circumstances import circumstances
from lartpc_ds.costs import hardware
from lartpc_ds.costs.hardware import Link, Links
from lartpc_ds.costs.roofline import all_reduce_seconds

__all__ = ["IMAGES_PER_SECOND", "Fit", "bench", "fit", "predicted_images_per_second"]

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

They are counted here as one image per GPU and step; more of them scale both terms of a step alike."""

_GPUS_PER_NODE = 4
_GRADIENT_BYTES = 32 << 20
"""The size is not published with the rates; it hardly matters, because the fitted bandwidth scales with it."""
_TRUSTED_GPUS = 64
"""The most GPUs for which a model of bandwidth alone is held to account."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The unknowns of the model, as the two smallest points fix them."""

    compute_seconds: float
    """The time of an image on a GPU, with all that does not grow with the number of GPUs."""
    within: Links
    across: Links
    """The links between nodes, whose bandwidth is the second unknown."""


def fit() -> Fit:
    """Fix the unknowns by the points of 4 and 8 GPUs; within a node, messages are those of the preset a100-nvlink."""
    within = hardware.load("a100-nvlink").within
    one_node, two_nodes = (gpus / IMAGES_PER_SECOND[gpus] for gpus in (_GPUS_PER_NODE, 2 * _GPUS_PER_NODE))
    compute = one_node - _all_reduce(_GPUS_PER_NODE, within, within)
    latency = all_reduce_seconds(0, _GPUS_PER_NODE, within, within, _GPUS_PER_NODE)
    at_a_byte_a_second = all_reduce_seconds(_GRADIENT_BYTES, 2, within, _links(1.0), 1)
    return Fit(compute, within, _links(at_a_byte_a_second / (two_nodes - compute - latency)))


def predicted_images_per_second(gpus: int, known: Fit) -> float:
    """The rate that the model predicts for `gpus` GPUs, a multiple of four."""
    return gpus / (known.compute_seconds + _all_reduce(gpus, known.within, known.across))


def _all_reduce(gpus: int, within: Links, across: Links) -> float:
    return all_reduce_seconds(_GRADIENT_BYTES, gpus, within, across, _GPUS_PER_NODE)


def _links(bytes_per_second: float) -> Links:
    link = Link(latency_seconds=0.0, bytes_per_second=bytes_per_second)
    return Links(send=link, all_reduce=link, all_gather=link)


def bench() -> dict[str, Any]:
    """Set predicted beside measured images per second at each number of GPUs, and say what the two smallest fix."""
    known = fit()
    points = [
        {
            "gpus": gpus,
            "measured_images_per_second": measured,
            "predicted_images_per_second": (predicted := predicted_images_per_second(gpus, known)),
            "ratio": predicted / measured,
        }
        for gpus, measured in IMAGES_PER_SECOND.items()
    ]
    return {
        **circumstances("cosmictagger", "cosmictagger", 1),
        "compute_seconds": known.compute_seconds,
        "across_bytes_per_second": known.across.all_reduce.bytes_per_second,
        "points": points,
        "error_max_to_64_gpus": max(abs(one["ratio"] - 1) for one in points if one["gpus"] <= _TRUSTED_GPUS),
    }
