"""What DeepSpeed's ZeRO stages keep of a network's weights and send between ranks: every formula about them is here.

Memory was measured on DeepSpeed 0.19.8 with one and two ranks, by the resident memory of an engine around weights that
dwarf its maps; tests/multirank/test_states.py measures it again. DeepSpeed's own estimators
(`estimate_zero2_model_states_mem_needs`) count 16 bit weights and a fixed margin of 1.5, which fits no configuration of
this project: weights are float32 here.

Messages are those of DeepSpeed's sources (`allreduce_gradients`, `__params_to_release`). Without ZeRO and with ZeRO-1,
gradients are summed once per step, at the end of its micro-batches; ZeRO-2 sums them in every micro-batch. ZeRO-1 and 2
gather the updated weights once. ZeRO-3 gathers weights for every forward pass, keeps them until the backward pass if
its configuration lets it, and scatters the sums of gradients in every micro-batch.
"""

from dataclasses import dataclass
from typing import NamedTuple

from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.costs.roofline import all_gather_seconds, all_reduce_seconds

__all__ = [
    "FLOAT_BYTES",
    "Reductions",
    "RoughStates",
    "States",
    "bytes_per_parameter",
    "reduction_seconds",
    "reductions_of",
    "rough_states_of",
    "states_of",
    "updating_ranks",
]

FLOAT_BYTES = 4


def _optimizer_maps(ds: DeepSpeedConfig) -> int:
    """The numbers that the optimizer keeps for each weight."""
    kind, params = ds["optimizer"]["type"], ds["optimizer"]["params"]
    return 2 if kind.startswith("Adam") else 1 if params.get("momentum") else 0


def updating_ranks(candidate: Candidate) -> int:
    """How many ranks share the update of a weight; without ZeRO every rank makes it for itself."""
    return candidate.sharing_ranks if candidate.zero else 1


@dataclass(frozen=True)
class States:
    """The bytes that a rank keeps on its device for its weights."""

    weights: int
    """Kept through a step; with ZeRO-3, those that are gathered are included."""
    optimizer: int
    """Its states and, with ZeRO, the copy of the weights that it works on."""
    gradients_before: int
    """Gradients that exist before the first backward pass of the micro-batch whose memory is counted."""
    gradient_share: float
    """The share that the rank keeps of the gradients that this micro-batch makes."""
    buffers: int
    """Buffers of messages."""
    update: int
    """All that exists while weights are updated, when no activation does: gradients and temporary copies, too."""


def states_of(ds: DeepSpeedConfig, candidate: Candidate, parameters: int, host: bool) -> States:
    """The states of one rank of one pipeline stage.

    Args:
        ds: the DeepSpeed JSON: its optimizer and sizes of buckets.
        candidate: layout, ZeRO stage and offload.
        parameters: how many of them the stage trains.
        host: is the device's memory the host's, so that offload moves nothing?
    """
    ranks = candidate.sharing_ranks
    whole, maps, zero = parameters * FLOAT_BYTES, _optimizer_maps(ds), candidate.zero
    share = whole / ranks
    bucket = min(int(ds["zero_optimization"].get("reduce_bucket_size", 5e8)) * FLOAT_BYTES, whole)
    several = candidate.accumulate > 1
    if zero == 0:
        kept = whole if several else 0
        return States(whole, maps * whole, kept, 0.0 if several else 1.0, 0, (1 + maps + 2) * whole)
    on_host = candidate.offload and not host
    optimizer = 0.0 if on_host else (1 + maps) * share
    copies = 2 * share if candidate.offload and host else 0.0  # of gradients, where the optimizer looks for them
    if zero == 3:
        # All weights count as gathered beside the shards, as measured; a single rank has nothing to gather.
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


class RoughStates(NamedTuple):
    """The bytes that weights, their gradients and the optimizer take at best."""

    weights: float
    gradients: float
    optimizer: float


def rough_states_of(candidate: Candidate, unshared: RoughStates) -> RoughStates:
    """An optimistic guess at the states of a rank, from those of the `unshared` whole network under ZeRO-0.

    Unlike `states_of` it knows neither buffers nor what ZeRO-3 gathers, so that a guess passes nothing good over.
    """
    ranks, zero = candidate.sharing_ranks, candidate.zero
    weights, gradients, optimizer = (size / candidate.layout.pipe for size in unshared)
    optimizer = 0.0 if candidate.offload else (optimizer + weights) / ranks if zero else optimizer
    return RoughStates(
        weights / ranks if zero == 3 else weights, gradients / ranks if zero >= 2 else gradients, optimizer
    )


def bytes_per_parameter(ds: DeepSpeedConfig, sharing_ranks: int) -> float:
    """What a pipeline stage keeps for each weight: the weight, its gradient and the optimizer's states.

    A stage has ZeRO-0 or ZeRO-1, which shares the states out, together with a second copy of the weights.
    """
    maps = _optimizer_maps(ds)
    states = (maps + 1) / sharing_ranks if ds["zero_optimization"]["stage"] == 1 else maps
    return FLOAT_BYTES * 2 + FLOAT_BYTES * states


class Reductions(NamedTuple):
    """How often all weights, or their gradients, travel in a step."""

    sums: int
    """All-reduces."""
    gathers: int
    """All-gathers, and reduce-scatters, which take as long."""


def reductions_of(ds: DeepSpeedConfig, candidate: Candidate, parameters: int) -> Reductions:
    """The reductions of a step of `candidate` whose stage trains so many parameters."""
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
    ds: DeepSpeedConfig, candidate: Candidate, parameters: int, hardware: Hardware, ranks_per_node: int
) -> float:
    """How long the ranks of one pipeline stage with so many parameters reduce in a step."""
    ranks, size = candidate.sharing_ranks, FLOAT_BYTES * parameters
    reductions = reductions_of(ds, candidate, parameters)
    links = hardware.within, hardware.across, min(ranks_per_node, ranks)
    sums = reductions.sums * all_reduce_seconds(size, ranks, *links)
    return sums + reductions.gathers * all_gather_seconds(size, ranks, *links)
