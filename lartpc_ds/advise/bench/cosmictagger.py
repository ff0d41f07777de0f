"""`lartpc-ds bench cosmictagger`: the model of messages beside public rates of up to 1700 GPUs. Nothing is run."""

from typing import Any

from lartpc_ds.advise.bench.circumstances import circumstances
from lartpc_ds.costs.cosmictagger import IMAGES_PER_SECOND, fit, predicted_images_per_second

__all__ = ["bench"]

_TRUSTED_GPUS = 64
"""The most GPUs for which a model of bandwidth alone is held to account."""


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
