"""How a network is cut into stages for a machine and its memory, and roughly what that makes of a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lartpc_ds.config.run import MemoryConfig, Recompute
from lartpc_ds.costs.applied import applied
from lartpc_ds.costs.cuts import BlockCost, choose_bounds, stage_bytes
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Problem
from lartpc_ds.costs.schedule import step_ns
from lartpc_ds.costs.stages import block_costs, scaled
from lartpc_ds.errors import UserError
from lartpc_ds.exact.trace.dry_run import built_without_memory
from lartpc_ds.layout import Bounds, Layout

__all__ = ["Split", "StageSplit", "Stages"]

Split = tuple[float, float, float]
"""What the fullest stage keeps, the time of a micro-batch in the slowest stage, and the time of the step.

Each is a share of that of one rank that has the whole network and one micro-batch."""

StageSplit = Callable[[Candidate], Split]


@dataclass
class Stages:
    """Profiles the blocks once for each way of recomputation, and cuts them as often as it is asked."""

    problem: Problem
    hardware: Hardware
    ranks: int
    """How many ranks share a machine."""
    limit_bytes: int
    """What the blocks may need of a rank's memory."""
    _costs: dict[str, list[BlockCost]] = field(default_factory=dict)
    _splits: dict[tuple[int, str, int], Split] = field(default_factory=dict)

    def split(self, candidate: Candidate) -> Split:
        """The split of the cut that would be chosen for a whole image."""
        pipe, kind, micro_batches = candidate.layout.pipe, candidate.memory.recompute, candidate.accumulate
        key = pipe, kind, micro_batches
        if key not in self._splits:
            costs = self._of(kind)
            self._splits[key] = _split(costs, choose_bounds("balanced", costs, pipe, micro_batches), micro_batches)
        return self._splits[key]

    def named(self, candidate: Candidate) -> Candidate:
        """The candidate with its cuts by name: balanced within the memory, or, where none fits, at all."""
        layout = candidate.layout
        if layout.pipe == 1 or not isinstance(candidate.cuts, str):
            return candidate
        growth = candidate.batch / layout.tiles
        costs = scaled(self._of(candidate.memory.recompute), growth)
        try:
            bounds = choose_bounds(candidate.cuts, costs, layout.pipe, candidate.accumulate, self.limit_bytes)
        except UserError:  # of the memory: what the best cut needs is asked for all the same
            bounds = choose_bounds(candidate.cuts, costs, layout.pipe, candidate.accumulate)
        return replace(candidate, cuts=tuple(costs[start].name for start in bounds[1:-1]))

    def _of(self, recompute: Recompute) -> list[BlockCost]:
        """The costs of blocks for a whole image, in micro-batches of one."""
        if recompute not in self._costs:
            problem = self.problem
            plain = Candidate(Layout(), memory=MemoryConfig(recompute=recompute))
            config, ds = applied(problem.config, problem.ds, plain)
            model = built_without_memory(problem.make_model)
            rates = self.hardware.shared_by(self.ranks)
            self._costs[recompute] = block_costs(config, ds, Layout(), model, problem.image, rates)
        return self._costs[recompute]


def _split(costs: Sequence[BlockCost], bounds: Bounds, micro_batches: int) -> Split:
    stateless = [replace(cost, state_bytes=0) for cost in costs]
    forward = [sum(cost.forward_ns for cost in costs[a:b]) for a, b in pairwise(bounds)]
    backward = [sum(cost.backward_ns for cost in costs[a:b]) for a, b in pairwise(bounds)]
    whole_ns = sum(forward) + sum(backward)
    stages = len(bounds) - 1
    fullest = max(
        stage_bytes(stateless, start, stop, min(stages - number, micro_batches))
        for number, (start, stop) in enumerate(pairwise(bounds))
    )
    slowest = max(a + b for a, b in zip(forward, backward, strict=True))
    played = step_ns(forward, backward, micro_batches)
    return fullest / stage_bytes(stateless, 0, len(costs), 1), slowest / whole_ns, played / whole_ns
