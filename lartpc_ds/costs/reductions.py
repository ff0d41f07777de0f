"""What ranks that share weights send each other in a step, as DeepSpeed's engine does it.

From the sources of DeepSpeed 0.19.8 (`allreduce_gradients`, `__params_to_release`). Without ZeRO and with ZeRO-1,
gradients are summed once a step, at the end of its micro-batches; ZeRO-2 sums them in every micro-batch. ZeRO-1 and 2
gather the updated weights once. ZeRO-3 gathers weights for every forward pass, keeps them until the backward if its
configuration lets it, and scatters the sums of gradients in every micro-batch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.costs.roofline import all_gather_seconds, all_reduce_seconds

__all__ = ["Reductions", "reduction_seconds", "reductions_of"]


class Reductions(NamedTuple):
    """How often all weights, or their gradients, travel in a step."""

    sums: int
    """All-reduces."""
    gathers: int
    """All-gathers, and reduce-scatters, which take as long."""


def reductions_of(ds: Mapping[str, Any], candidate: Candidate, parameters: int) -> Reductions:
    """Of a step of `candidate` whose stage trains so many parameters."""
    micro_batches = candidate.accumulate
    if candidate.zero <= 1:
        return Reductions(1, candidate.zero)
    if candidate.zero == 2:
        return Reductions(micro_batches, 1)
    zero = ds["zero_optimization"]
    distance, live = zero.get("stage3_max_reuse_distance", 1e9), zero.get("stage3_max_live_parameters", 1e9)
    # from a layer's forward pass to its backward pass lie at most twice all parameters
    kept = 2 * parameters <= distance and parameters <= live
    return Reductions(0, micro_batches * (2 if kept else 3))


def reduction_seconds(
    ds: Mapping[str, Any], candidate: Candidate, parameters: int, hardware: Hardware, ranks_per_node: int
) -> float:
    """Of the ranks of one pipeline stage, which has so many parameters in float32."""
    ranks, size = candidate.layout.data * candidate.layout.tiles, 4 * parameters
    reductions = reductions_of(ds, candidate, parameters)
    links = hardware.within, hardware.across, min(ranks_per_node, ranks)
    sums = reductions.sums * all_reduce_seconds(size, ranks, *links)
    return sums + reductions.gathers * all_gather_seconds(size, ranks, *links)
