"""Pipeline stages begin where pure integer functions of what each block costs say.

A step is as slow as its slowest stage, so `balanced` makes that one fast. It counts activations, because under 1F1B
stage s of S keeps those of min(S - s, M) micro-batches at once: the early stages of a CNN, which have the large maps
anyway, also keep most copies of them. Rejected: an even number of parameters or blocks (both offered, for comparison),
because a CNN's first blocks have nearly no parameters and nearly all of the work and memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from lartpc_ds.errors import UserError
from lartpc_ds.layout import Bounds

__all__ = ["BlockCost", "choose_bounds", "stage_bytes", "stage_ns"]

_GIB = 2**30

StageCost = Callable[[int, int, int], int | None]
"""Given s, start and stop, what stage s costs if it has the blocks [start, stop); None: it may not have them."""


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What a micro-batch costs in one block; bytes are those of one rank."""

    name: str
    parameters: int
    """How many parameters are trained."""
    state_bytes: int
    """The bytes of weights, of their gradients and of what the optimizer keeps of them."""
    saved_bytes: int
    """The bytes kept for the backward pass, less what an earlier block has kept already."""
    input_bytes: int
    output_bytes: int
    saves_input: bool
    """Is its input among what it keeps, or what an earlier block keeps for it?"""
    output_saved: bool
    """Is its output kept by it?"""
    transient_bytes: int
    """The most bytes that a single operator reads and writes."""
    forward_ns: int
    backward_ns: int


def stage_ns(costs: Sequence[BlockCost], start: int, stop: int) -> int:
    """The time of a forward and a backward pass of the blocks [start, stop)."""
    return sum(cost.forward_ns + cost.backward_ns for cost in costs[start:stop])


def stage_bytes(costs: Sequence[BlockCost], start: int, stop: int, copies: int) -> int:
    """The peak memory of a stage that has the blocks [start, stop) and keeps `copies` micro-batches.

    At the backward pass of a block what later blocks kept of that micro-batch is gone; of the other micro-batches all
    is there. DeepSpeed keeps what it received beside the clone that the stage works on, what it sent until the gradient
    comes back, and one buffer for each kind of message.
    """
    blocks, first, last = costs[start:stop], costs[start], costs[stop - 1]
    kept = first.input_bytes
    if start > 0 and first.saves_input and costs[start - 1].output_saved:
        kept += first.input_bytes  # counted with the block that made it, which is elsewhere now
    buffers = first.input_bytes if start > 0 else 0
    if stop < len(costs):
        buffers += last.output_bytes
        kept += 0 if last.output_saved else last.output_bytes
    so_far = list(accumulate((cost.saved_bytes for cost in blocks), initial=kept))[1:]
    most = max(held + cost.transient_bytes for held, cost in zip(so_far, blocks, strict=True))
    return (copies - 1) * so_far[-1] + most + buffers + sum(cost.state_bytes for cost in blocks)


def choose_bounds(
    cuts: str | Sequence[str],
    costs: Sequence[BlockCost],
    stages: int,
    micro_batches: int,
    limit_bytes: int | None = None,
) -> Bounds:
    """Choose the blocks at which stages begin and end: stage s has [B_s, B_s+1).

    Args:
        cuts: `balanced`, `parameters`, `uniform`, or the names of the first blocks of the second and later stages.
        costs: one a block, in order.
        stages: how many.
        micro_batches: of an optimizer step.
        limit_bytes: what a rank has, for `balanced`; None: as much as it takes.

    Raises:
        UserError: more stages than blocks with parameters, a name that is no block or not in order, a stage without
            parameters, or no cut that fits `limit_bytes`.
    """
    trained = [cost.name for cost in costs if cost.parameters]
    if stages > len(trained):
        raise UserError(
            f"layout.pipe = {stages}: each stage needs a block with parameters, and the model has {len(trained)}: "
            f"{', '.join(trained)}; set layout.pipe to {len(trained)} at most"
        )
    if not isinstance(cuts, str):
        return _named(cuts, costs)
    if cuts == "balanced":
        return _balanced(costs, stages, micro_batches, limit_bytes)
    return _even([1 if cuts == "uniform" else cost.parameters for cost in costs], costs, stages)


def _even(weights: Sequence[int], costs: Sequence[BlockCost], stages: int) -> Bounds:
    """The cut whose largest stage is smallest; of several such cuts, the one whose smallest stage is largest."""

    def weight(stage: int, start: int, stop: int) -> int | None:
        return sum(weights[start:stop]) if any(cost.parameters for cost in costs[start:stop]) else None

    largest = _minimax(weight, stages, len(costs))
    assert largest is not None, "there are enough blocks with parameters"

    def lacks(stage: int, start: int, stop: int) -> int | None:
        mine = weight(stage, start, stop)
        return None if mine is None or mine > largest[0] else sum(weights) - mine

    smallest = _minimax(lacks, stages, len(costs))
    assert smallest is not None
    return smallest[1]


def _balanced(costs: Sequence[BlockCost], stages: int, micro_batches: int, limit_bytes: int | None) -> Bounds:
    """The cut within the limit whose slowest stage is fastest; of several, the one whose fullest stage needs least."""

    def needs(stage: int, start: int, stop: int) -> int | None:
        if not any(cost.parameters for cost in costs[start:stop]):
            return None
        return stage_bytes(costs, start, stop, min(stages - stage, micro_batches))

    def takes(stage: int, start: int, stop: int) -> int | None:
        bytes_here = needs(stage, start, stop)
        fits = bytes_here is not None and (limit_bytes is None or bytes_here <= limit_bytes)
        return stage_ns(costs, start, stop) if fits else None

    fastest = _minimax(takes, stages, len(costs))
    if fastest is None:
        smallest = _minimax(needs, stages, len(costs))
        assert smallest is not None and limit_bytes is not None
        raise UserError(
            f"layout.pipe = {stages}: no cut into {stages} stages fits a device of {limit_bytes / _GIB:.2f} GiB; the "
            f"best needs {smallest[0] / _GIB:.2f} GiB, {(smallest[0] - limit_bytes) / _GIB:.2f} GiB too much; more "
            "stages, tiles (layout.rows, layout.cols), a smaller data.batch or "
            "--set memory.recompute=block would help"
        )
    slowest = fastest[0]

    def needs_if_fast(stage: int, start: int, stop: int) -> int | None:
        time = takes(stage, start, stop)
        return None if time is None or time > slowest else needs(stage, start, stop)

    smallest = _minimax(needs_if_fast, stages, len(costs))
    assert smallest is not None
    return smallest[1]


def _minimax(cost: StageCost, stages: int, blocks: int) -> tuple[int, Bounds] | None:
    """The cut whose dearest stage is cheapest, and what that costs; None if every cut is forbidden.

    Exact: the best cut of the first `stop` blocks into `stage + 1` stages extends a best one into `stage`. Two aims at
    once would not be (a prefix that is worse in the first may be better in the second, where a later stage decides the
    first), so callers fix the first aim's value and then ask for the second.
    """
    best: dict[int, tuple[int, Bounds]] = {0: (0, (0,))}
    for stage in range(stages):
        longer: dict[int, tuple[int, Bounds]] = {}
        for stop in range(stage + 1, blocks - (stages - stage - 1) + 1):
            found = [
                (max(so_far, value), (*bounds, stop))
                for start, (so_far, bounds) in best.items()
                if start < stop and (value := cost(stage, start, stop)) is not None
            ]
            if found:
                longer[stop] = min(found)
        best = longer
    return best.get(blocks)


def _named(cuts: Sequence[str], costs: Sequence[BlockCost]) -> Bounds:
    names = [cost.name for cost in costs]
    told = f"layout.cuts = {list(cuts)}"
    unknown = [name for name in cuts if name not in names[1:]]
    if unknown:
        first = f"; the first stage begins at {names[0]} anyway" if names[0] in unknown else ""
        raise UserError(
            f"{told}: no such place to begin a stage: {', '.join(unknown)}{first}; blocks: {', '.join(names[1:])}"
        )
    bounds = (0, *(names.index(name) for name in cuts), len(names))
    if sorted(set(bounds)) != list(bounds):
        raise UserError(f"{told}: must be in the order of the model's blocks, each once: {', '.join(names[1:])}")
    for start, stop in pairwise(bounds):
        if not any(cost.parameters for cost in costs[start:stop]):
            raise UserError(
                f"{told}: the stage of {', '.join(names[start:stop])} has no parameters; give it a neighbour's block"
            )
    return bounds
