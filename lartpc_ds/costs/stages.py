"""The pipeline stages of a run: what is refused, where each stage begins, and what it holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import nn

from lartpc_ds.config.ds_config import DeepSpeedConfig, precision
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.cuts import BlockCost, choose_bounds, stage_bytes, stage_ns
from lartpc_ds.costs.hardware import Rates, load
from lartpc_ds.costs.profile import profile
from lartpc_ds.costs.zero import bytes_per_parameter
from lartpc_ds.errors import UserError
from lartpc_ds.exact.spatialize import TilePlan
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.models.build import blocks

__all__ = ["StageShare", "block_costs", "check_zero", "cut_rates", "plan_stages", "scaled", "stage_shares"]

_CUT_FOR = "a100-nvlink"


def cut_rates() -> Rates:
    """The rates by which a job's stages are cut where its configuration does not name the cuts.

    They are those of one preset, because the cut is made before any rank runs, on a login node as well as on the
    device, and the same command must give the same stages on both. `lartpc-ds plan` cuts for the machine that it is
    asked about and names the blocks.
    """
    return load(_CUT_FOR).shared_by(1)


def check_zero(config: RunConfig, ds: DeepSpeedConfig, layout: Layout) -> None:
    """Refuse what DeepSpeed cannot do beside stages, or does wrong, and what its ZeRO-3 would hang in.

    Raises:
        UserError: ZeRO 2 or 3, or parameters offloaded, with stages; ZeRO-3 where ranks decide what they recompute.
    """
    if config.memory.recompute == "auto" and ds["zero_optimization"]["stage"] == 3:
        raise UserError(
            f"memory.recompute = 'auto' with train.ds_config = {config.train.ds_config!r}: each rank decides for its "
            "own events, and ZeRO-3 gathers weights for every run of a block on all ranks; set memory.recompute = "
            "'none' or 'block', or add --set ds.zero_optimization.stage=2"
        )
    if layout.pipe == 1:
        return
    told = f"train.ds_config = {config.train.ds_config!r} with layout.pipe = {layout.pipe}"
    advice = "add --set ds.zero_optimization.stage=1"
    zero = ds["zero_optimization"]
    if zero["stage"] > 1:
        raise UserError(
            f"{told}: ZeRO-{zero['stage']} does not go with pipeline stages, which keep the gradients of all "
            f"micro-batches until the end of a step; {advice} (or 0)"
        )
    if (zero.get("offload_param") or {}).get("device", "none") != "none":
        raise UserError(
            f"{told}: zero_optimization.offload_param needs ZeRO-3, which does not go with pipeline stages; take "
            "zero2_offload_bf16, which offloads the optimizer, and " + advice
        )


def plan_stages(
    config: RunConfig,
    ds: DeepSpeedConfig,
    layout: Layout,
    model: nn.Module,
    image: tuple[int, int, int],
    plan: TilePlan,
    rates: Rates,
    limit_bytes: int | None = None,
) -> Bounds:
    """Find which blocks each stage has; () for a model that is not cut.

    Args:
        config: of the run.
        ds: the DeepSpeed configuration.
        layout: whose `pipe` is the number of stages.
        model: on the meta device.
        image: (planes, rows, columns) of the whole image.
        plan: of the tiles.
        rates: of a device; their ratios decide a balanced cut.
        limit_bytes: memory of a rank, if the cut shall respect it.

    Raises:
        UserError: the model has no blocks, they cannot be cut so, or the tiles need what stages do not run.
    """
    if layout.pipe == 1:
        return ()
    sequence = blocks(model)
    costs = block_costs(config, ds, layout, model, image, rates)
    bounds = choose_bounds(config.layout.cuts, costs, layout.pipe, config.train.accumulate, limit_bytes)
    _check_shared(sequence, bounds)
    _check_outside(model, sequence, plan)
    return bounds


def _check_shared(sequence: Sequence[tuple[str, nn.Module]], bounds: Bounds) -> None:
    """Refuse a parameter in two stages, because each stage trains its own."""
    held: dict[int, tuple[int, str]] = {}
    for stage, (start, stop) in enumerate(pairwise(bounds)):
        for name, block in sequence[start:stop]:
            for value in (*block.parameters(), *block.buffers()):
                other, where = held.setdefault(id(value), (stage, name))
                if other != stage:
                    raise UserError(
                        f"layout.cuts: blocks {where} and {name} share weights but are in stages {other} and {stage}; "
                        "name cuts that leave them in one stage, or set layout.pipe = 1"
                    )


def _check_outside(model: nn.Module, sequence: Sequence[tuple[str, nn.Module]], plan: TilePlan) -> None:
    """Refuse what the tiles need outside of the blocks: a stage runs blocks only, and would silently leave it out."""
    inside = {module for _, block in sequence for module in block.modules()}
    names = {name for name, module in model.named_modules() if module in inside}
    for call in plan.calls:
        if call.run is not None and call.owner not in names:
            raise UserError(
                f"{call.owner or 'the model'} ({call.where}): {call.name} is made outside of the model's blocks, which "
                "is all that a pipeline stage runs; move it into a block, name a block in layout.gather_at, or set "
                "layout.pipe = 1"
            )


def block_costs(
    config: RunConfig,
    ds: DeepSpeedConfig,
    layout: Layout,
    model: nn.Module,
    image: tuple[int, int, int],
    rates: Rates,
) -> list[BlockCost]:
    """What each block costs a rank for a micro-batch: with tiles, an even share of the cost of the whole image."""
    state_bytes = bytes_per_parameter(ds, layout.data * layout.tiles)
    whole = profile(blocks(model), (config.data.batch, *image), precision(ds), state_bytes, rates)
    if config.memory.recompute == "block":
        whole = [_recomputed(cost) for cost in whole]
    return scaled(whole, 1 / layout.tiles)


def scaled(costs: Sequence[BlockCost], share: float) -> list[BlockCost]:
    """The costs of the same blocks on `share` of their maps; states stay."""
    maps = ("saved_bytes", "input_bytes", "output_bytes", "transient_bytes", "forward_ns", "backward_ns")
    changes: list[dict[str, Any]] = [{name: int(getattr(cost, name) * share) for name in maps} for cost in costs]
    return [replace(cost, **change) for cost, change in zip(costs, changes, strict=True)]


def _recomputed(cost: BlockCost) -> BlockCost:
    """The cost of a block that keeps its input only, and makes all else again before its backward pass."""
    return replace(
        cost,
        saved_bytes=cost.input_bytes,
        saves_input=True,
        output_saved=False,
        transient_bytes=cost.transient_bytes + cost.saved_bytes,
        backward_ns=cost.backward_ns + cost.forward_ns,
    )


@dataclass(frozen=True)
class StageShare:
    """One stage's part of a step."""

    first: str
    last: str
    blocks: int
    time: float
    """The stage's share of the time of all stages."""
    copies: int
    """How many micro-batches' activations it keeps."""
    bytes: int
    """The bytes of one of its ranks at its peak."""


def stage_shares(costs: Sequence[BlockCost], bounds: Bounds, micro_batches: int) -> list[StageShare]:
    """The part of a step that each stage has."""
    stages = len(bounds) - 1
    total = stage_ns(costs, 0, len(costs))
    shares = []
    for stage, (start, stop) in enumerate(pairwise(bounds)):
        copies = min(stages - stage, micro_batches)
        time = stage_ns(costs, start, stop) / max(total, 1)
        needs = stage_bytes(costs, start, stop, copies)
        shares.append(StageShare(costs[start].name, costs[stop - 1].name, stop - start, time, copies, needs))
    return shares
