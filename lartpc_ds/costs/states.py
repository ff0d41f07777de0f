"""What DeepSpeed keeps of a stage's weights, in float32 copies of them, by ZeRO stage and number of ranks.

Measured on DeepSpeed 0.19.8, one and two ranks, by the resident memory of an engine around weights that dwarf its maps
(tests/multirank/test_states.py does it again). Its own estimators (`estimate_zero2_model_states_mem_needs`) count 16
bit weights and a fixed margin of 1.5, which fits no configuration of this project: weights are float32 here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lartpc_ds.costs.problem import Candidate

__all__ = ["States", "optimizer_maps", "states_of"]

_FLOAT = 4


@dataclass(frozen=True)
class States:
    """Bytes of one rank on its device."""

    weights: int
    """Kept through a step; with ZeRO-3 with those that are gathered."""
    optimizer: int
    """Its states and, with ZeRO, the copy of the weights that it works on."""
    gradients_before: int
    """That are there before the first backward pass of the micro-batch whose memory is counted."""
    gradient_share: float
    """Of the gradients that this micro-batch makes: how much the rank keeps."""
    buffers: int
    """Of messages."""
    update: int
    """All that there is while weights are updated, when no activation is: gradients and temporary copies too."""


def optimizer_maps(ds: Mapping[str, Any]) -> int:
    """Numbers that the optimizer keeps for each weight."""
    kind, params = ds["optimizer"]["type"], ds["optimizer"]["params"]
    return 2 if kind.startswith("Adam") else 1 if params.get("momentum") else 0


def states_of(ds: Mapping[str, Any], candidate: Candidate, parameters: int, host: bool) -> States:
    """Of a rank of one pipeline stage.

    Args:
        ds: the DeepSpeed JSON: its optimizer and sizes of buckets.
        candidate: layout, ZeRO stage and offload.
        parameters: of the stage, that are trained.
        host: is the device's memory the host's, so that offload moves nothing?
    """
    ranks = candidate.layout.data * candidate.layout.tiles
    whole, maps, zero = parameters * _FLOAT, optimizer_maps(ds), candidate.zero
    share = whole / ranks
    bucket = min(int(ds["zero_optimization"].get("reduce_bucket_size", 5e8)) * _FLOAT, whole)
    several = candidate.accumulate > 1
    if zero == 0:
        kept = whole if several else 0
        return States(whole, maps * whole, kept, 0.0 if several else 1.0, 0, (1 + maps + 2) * whole)
    on_host = candidate.offload and not host
    optimizer = 0.0 if on_host else (1 + maps) * share
    copies = 2 * share if candidate.offload and host else 0.0  # of gradients, where the optimizer looks for them
    if zero == 3:
        # beside the shards; a single rank has nothing to gather
        gathered = float(whole) if ranks > 1 else 0.0
        weights = share + gathered
        gradients = 0.0 if on_host else share
        update = 0.0 if candidate.offload else (1 + 1 + maps + 1 + 3) * share
        return _rounded(weights, optimizer + copies, gradients, 0.0, bucket, update)
    update = whole if candidate.offload else whole + (1 + maps + 1 + 2) * share
    if on_host:
        return _rounded(whole, 0.0, 0.0, 0.0, 2 * bucket, update)
    before = 0.0 if not several else float(whole) if zero == 1 else share
    kept_share = 0.0 if several else 1.0 if zero == 1 else 1 / ranks
    return _rounded(whole, optimizer + copies, before, kept_share, bucket, update)


def _rounded(weights: float, optimizer: float, before: float, share: float, buffers: float, update: float) -> States:
    return States(round(weights), round(optimizer), round(before), share, round(buffers), round(update))
