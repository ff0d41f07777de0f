"""A guess at what a candidate costs, from a few that were traced, so that thousands can be put in order in a second.

A whole image, two halves of it, and the image with each lever are traced. Activations and computation then go with the
share of the image, halos with the length of the seams, states with DeepSpeed's formulas, stages with the profile of
blocks. All this errs on the bright side (small tiles cost more than their share), so that nothing good is passed over,
and what is traced corrects the guesses that are like it. A guess is never recommended: it says what to trace next.
Rejected: formulas alone (wrong where it matters, at the edge of the memory), and to trace all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lartpc_ds.config import MemoryConfig
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.planning.hardware import Hardware
from lartpc_ds.planning.problem import Candidate, Cost, MemoryParts, TimeParts
from lartpc_ds.planning.roofline import all_gather_seconds, all_reduce_seconds
from lartpc_ds.planning.stage_split import StageSplit

__all__ = ["PLAIN", "References", "Surrogate", "references", "with_halves"]

PLAIN = MemoryConfig()
"""No lever."""
_HOST_BYTES_PER_SECOND = 20e9
"""Between a device and the host's memory: PCI Express 4 with 16 lanes carries 32 GB/s at most."""
_UPDATE_PASSES = 7
"""Over the weights, of AdamW: it reads weight, gradient and two states, and writes three of them."""

Trace = Callable[[Candidate], Cost]


@dataclass(frozen=True)
class References:
    """What was traced first, on ZeRO-0 and with one event a micro-batch."""

    whole: dict[MemoryConfig, Cost]
    """Of a rank that has whole events, by its levers; the plain network is always among them."""
    rows: Cost | None
    """Of a rank that has the upper half of an event; None where tiles are not to be had."""
    cols: Cost | None
    """The left half."""
    refused: dict[str, str]
    """Why there are no `tiles`, `streaming`, `lean norms` or `recomputation`: the network's own refusal."""


def references(trace: Trace, devices: int, levers: list[MemoryConfig]) -> References:
    """Trace what a surrogate starts from.

    Raises:
        UserError: not even the plain network can run on whole images.
    """
    refused: dict[str, str] = {}

    alone = Layout(data=devices)  # as many ranks as the job has share each machine, which counts on a CPU
    whole = {PLAIN: trace(Candidate(alone))}
    for memory in levers:
        if memory != PLAIN and _axis(memory) not in refused:
            try:
                whole[memory] = trace(Candidate(alone, memory=memory))
            except UserError as error:
                refused[_axis(memory)] = str(error)
    if devices == 1:
        return References(whole, None, None, refused)
    return with_halves(References(whole, None, None, refused), trace, devices)


def with_halves(base: References, trace: Trace, devices: int) -> References:
    """The same, with the two halves of an event; with the reason where the network cannot be cut into tiles."""
    halves: list[Cost] = []
    why = ""
    for grid in ({"rows": 2}, {"cols": 2}):
        try:
            halves.append(trace(Candidate(Layout(data=max(devices // 2, 1), **grid))))
        except UserError as error:
            why = why or str(error)
    if not halves:
        return replace(base, refused={**base.refused, "tiles": why})
    return replace(base, rows=halves[0], cols=halves[-1])


def _axis(memory: MemoryConfig) -> str:
    if memory.stream_strips > 1:
        return "streaming"
    return "lean norms" if memory.lean_norm else "recomputation"


@dataclass(frozen=True)
class _Factors:
    """What was traced, over what was guessed."""

    activations: float = 1.0
    compute: float = 1.0
    halo: float = 1.0


def _ratio(traced: float, guessed: float) -> float:
    return traced / guessed if guessed > 0 else 1.0


class Surrogate:
    """Guesses, and learns from what is traced."""

    def __init__(
        self, base: References, hardware: Hardware, ranks_per_node: int, split: StageSplit | None = None
    ) -> None:
        self.base, self._hardware, self._ranks_per_node, self._split = base, hardware, ranks_per_node, split
        self._known: dict[tuple[object, ...], tuple[Candidate, Cost]] = {}
        self._factors: dict[tuple[int, ...], _Factors] = {}
        self._of_stages = _Factors()
        plain = base.whole[PLAIN]
        self._states = plain.memory.weights, plain.memory.gradients, plain.memory.optimizer
        self._update = _UPDATE_PASSES * plain.memory.weights / hardware.rates[0].traffic_bytes_per_second

    def learn(self, candidate: Candidate, cost: Cost) -> None:
        """What was traced corrects what is like it."""
        guess = self._guess(candidate, _Factors())
        self._known[_trace_key(candidate)] = candidate, cost
        factors = _Factors(
            _ratio(cost.memory.activations, guess.memory.activations),
            _ratio(cost.time.compute, guess.time.compute),
            _ratio(cost.time.halo, guess.time.halo),
        )
        self._factors[_group(candidate)] = factors
        if candidate.layout.pipe > 1:
            self._of_stages = factors

    def guess(self, candidate: Candidate) -> Cost:
        """Near what `candidate` would cost."""
        known = self._known.get(_trace_key(candidate))
        if known is not None:
            return self._derived(candidate, *known)
        like = self._of_stages if candidate.layout.pipe > 1 else _Factors()
        return self._guess(candidate, self._factors.get(_group(candidate), like))

    def concerns(self, traced: Candidate, other: Candidate) -> bool:
        """Does a trace of the one change the guess of the other?"""
        return _group(traced) == _group(other)

    def alike(self, one: Candidate, other: Candidate) -> bool:
        """Do they differ in states and reductions only?"""
        return _trace_key(one) == _trace_key(other)

    def _guess(self, candidate: Candidate, factors: _Factors) -> Cost:
        layout = candidate.layout
        activations, micro, workspace = self._whole(candidate.memory)
        share = candidate.batch / layout.tiles
        split = None if layout.pipe == 1 or self._split is None else self._split(candidate)
        kept, slowest, played = (1.0, 1.0, float(candidate.accumulate)) if split is None else split
        halo_bytes, halo_seconds = self._halos(candidate)
        micro = micro * share * factors.compute
        memory = self._memory(candidate, kept * activations * share * factors.activations, halo_bytes, workspace)
        return Cost(
            memory,
            TimeParts(
                micro * slowest * candidate.accumulate + self._updating(candidate),
                halo_seconds * candidate.accumulate * slowest * factors.halo,
                self._reduction(candidate),
                micro * max(played - slowest * candidate.accumulate, 0),
            ),
            candidate.global_batch,
        )

    def _derived(self, candidate: Candidate, like: Candidate, cost: Cost) -> Cost:
        """What has the same trace, with its own states and reductions."""
        growth = candidate.accumulate / like.accumulate
        compute = (cost.time.compute - self._updating(like)) * growth + self._updating(candidate)
        old, new, traced = self._memory(like, 0, 0, 0), self._memory(candidate, 0, 0, 0), cost.memory
        memory = MemoryParts(
            weights=max(traced.weights + new.weights - old.weights, 0),
            gradients=max(traced.gradients + new.gradients - old.gradients, 0),
            optimizer=max(traced.optimizer + new.optimizer - old.optimizer, 0),
            activations=traced.activations,
            halos=traced.halos,
            workspace=traced.workspace,
        )
        reduction = cost.time.reduction + self._reduction(candidate) - self._reduction(like)
        time = TimeParts(compute, cost.time.halo * growth, max(reduction, 0.0), cost.time.bubble)
        return Cost(memory, time, candidate.global_batch)

    def _micro(self, cost: Cost) -> float:
        return max(cost.time.compute - self._update, cost.time.compute / 2)

    def _whole(self, memory: MemoryConfig) -> tuple[float, float, float]:
        """Activations, seconds of a micro-batch of one, and workspace, of a whole image."""
        if (cost := self.base.whole.get(memory)) is not None:
            return float(cost.memory.activations), self._micro(cost), float(cost.memory.workspace)
        strips = sorted((one.stream_strips, one) for one in self.base.whole if one.stream_strips > 1)
        if memory.stream_strips == 1 or not strips:
            return self._whole(PLAIN)
        few, many = strips[0], strips[-1]
        at = (memory.stream_strips - few[0]) / max(many[0] - few[0], 1)
        pairs = zip(self._whole(few[1]), self._whole(many[1]), strict=True)
        activations, seconds, workspace = (one + (other - one) * at for one, other in pairs)
        return activations, seconds, workspace

    def _halos(self, candidate: Candidate) -> tuple[float, float]:
        """Bytes, and seconds of a micro-batch, of a tile with most neighbours."""
        layout, total = candidate.layout, [0.0, 0.0]
        for half, parts, other in (
            (self.base.rows, layout.rows, layout.cols),
            (self.base.cols, layout.cols, layout.rows),
        ):
            if half is None or parts == 1:
                continue
            seams = min(parts - 1, 2) * candidate.batch / other
            total[0] += seams * half.memory.halos
            total[1] += seams * half.time.halo
        return total[0], total[1]

    def _memory(self, candidate: Candidate, activations: float, halos: float, workspace: float) -> MemoryParts:
        layout = candidate.layout
        ranks = layout.data * layout.tiles
        weights, gradients, optimizer = (size / layout.pipe for size in self._states)
        optimizer = 0.0 if candidate.offload else (optimizer + weights) / ranks if candidate.zero else optimizer
        return MemoryParts(
            weights=round(weights / ranks if candidate.zero == 3 else weights),
            gradients=round(gradients / ranks if candidate.zero >= 2 else gradients),
            optimizer=round(optimizer),
            activations=round(activations),
            halos=round(halos),
            workspace=round(workspace),
        )

    def _updating(self, candidate: Candidate) -> float:
        layout = candidate.layout
        shared = layout.data * layout.tiles if candidate.zero else 1
        seconds = self._update / layout.pipe / shared
        if candidate.offload:  # gradients out, weights back
            seconds += 2 * self._states[0] / layout.pipe / shared / _HOST_BYTES_PER_SECOND
        return seconds

    def _reduction(self, candidate: Candidate) -> float:
        layout, links = candidate.layout, (self._hardware.within, self._hardware.across)
        size, ranks = self._states[1] // layout.pipe, layout.data * layout.tiles
        times = candidate.accumulate if candidate.zero >= 2 else 1
        seconds = times * all_reduce_seconds(size, ranks, *links, self._ranks_per_node)
        if candidate.zero == 3:
            seconds += candidate.accumulate * all_gather_seconds(size, ranks, *links, self._ranks_per_node)
        return seconds


def _trace_key(candidate: Candidate) -> tuple[object, ...]:
    """Candidates with the same key differ in states and reductions only."""
    layout, micro_batches = candidate.layout, min(candidate.accumulate, candidate.layout.pipe)
    grid = layout.pipe, layout.rows, layout.cols
    return (
        grid,
        candidate.batch,
        micro_batches,
        candidate.memory,
        candidate.gather_at,
        candidate.cuts,
        candidate.overlap,
    )


def _group(candidate: Candidate) -> tuple[int, ...]:
    """Candidates of one group are like each other in what a guess leaves out."""
    return candidate.layout.pipe, candidate.layout.tiles, candidate.memory.stream_strips
