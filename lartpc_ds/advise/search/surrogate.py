"""A guess at what a candidate costs, from a few that were traced, so that thousands can be put in order in a second.

One whole image is traced as it is, recomputed, and in strips where the network can have them. Activations and
computation then go with the share of the image, states with DeepSpeed's formulas, stages with the profile of blocks,
and halos cost nothing. All this errs on the bright side, so that nothing good is passed over, and what is traced
corrects the guesses that are like it. A guess is never recommended: it says what to trace next. Rejected: formulas
alone (wrong where it matters, at the edge of the memory), and to trace all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, Problem, TimeParts, trace_key
from lartpc_ds.costs.stage_split import StageSplit
from lartpc_ds.costs.stragglers import expected_delay_seconds
from lartpc_ds.costs.zero import FLOAT_BYTES, RoughStates, reduction_seconds, rough_states_of, updating_ranks
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = ["PLAIN", "References", "Surrogate", "references"]

PLAIN = MemoryConfig()
"""The network without any lever."""
_HOST_BYTES_PER_SECOND = 25e9
"""The traffic between a device and the host's memory: PCI Express 4 with 16 lanes carries 32 GB/s at most."""
_UPDATE_PASSES = 7
"""How often AdamW passes over the weights: it reads weight, gradient and two states, and writes three of them."""
_LEAN = 0.5
"""The share of activations that lean norms leave at best (docs/memory.md)."""
_STAGED = 0.8
"""The share that stages keep at best of what the profile of blocks says (docs/pipeline.md)."""

Trace = Callable[[Candidate], Cost]


@dataclass(frozen=True)
class References:
    """What is traced first: whole events, one per micro-batch, under ZeRO-0."""

    whole: dict[MemoryConfig, Cost]
    """The cost with each set of levers; the plain network is always among them."""
    refused: dict[str, str]
    """Why there is no `streaming`, `lit` or `recomputation`: the network's own refusal."""

    @property
    def sentences(self) -> list[str]:
        """The refusals as sentences for people."""
        return [f"{axis} is not offered: {why}" for axis, why in self.refused.items()]


def references(trace: Trace, devices: int, levers: list[MemoryConfig]) -> References:
    """Trace what a surrogate starts from.

    Raises:
        UserError: not even the plain network can run on whole images.
    """
    alone = Layout(data=devices)  # as many ranks as the job has share each machine, which counts on a CPU
    whole, refused = {PLAIN: trace(Candidate(alone))}, {}
    for memory in levers:
        axis = "streaming" if memory.stream_strips > 1 else "lit" if memory.lit_block else "recomputation"
        try:
            whole[memory] = trace(Candidate(alone, memory=memory))
        except UserError as error:
            refused[axis] = str(error)
    return References(whole, refused)


@dataclass(frozen=True)
class _Correction:
    """What was traced over what was guessed, and the halos of one event and pass, which are not guessed."""

    activations: float = 1.0
    compute: float = 1.0
    halo_bytes: float = 0.0
    halo_seconds: float = 0.0


class Surrogate:
    """Guesses what candidates cost, and learns from those that are traced."""

    def __init__(
        self, problem: Problem, base: References, hardware: Hardware, ranks_per_node: int, split: StageSplit
    ) -> None:
        self._problem, self._base, self._split = problem, base, split
        self._hardware, self._ranks_per_node = hardware, ranks_per_node
        self._known: dict[tuple[object, ...], tuple[Candidate, Cost]] = {}
        self._corrections: dict[tuple[object, ...], _Correction] = {}
        plain = base.whole[PLAIN]
        self._states = RoughStates(plain.memory.weights, plain.memory.gradients, plain.memory.optimizer)
        self._update = _UPDATE_PASSES * plain.memory.weights / hardware.rates[0].traffic_bytes_per_second

    def learn(self, candidate: Candidate, cost: Cost) -> None:
        """Correct the guesses of candidates that are like the traced one."""
        guess = self._guess(candidate, _Correction())
        self._known[self._trace_key(candidate)] = candidate, cost
        self._corrections[_group(candidate)] = _Correction(
            _ratio(cost.memory.activations, guess.memory.activations),
            _ratio(cost.time.compute, guess.time.compute),
            cost.memory.halos / candidate.batch,
            cost.time.halo / candidate.batch / candidate.accumulate,
        )

    def guess(self, candidate: Candidate) -> Cost:
        """Guess what `candidate` would cost."""
        known = self._known.get(self._trace_key(candidate))
        if known is not None:
            return self._derived(candidate, *known)
        return self._guess(candidate, self._corrections.get(_group(candidate), _Correction()))

    def knows(self, candidate: Candidate) -> bool:
        """Was a candidate traced that differs from this one in states and reductions only?"""
        return self._trace_key(candidate) in self._known

    def concerns(self, traced: Candidate, other: Candidate) -> bool:
        """Does a trace of the one change the guess of the other?"""
        return _group(traced) == _group(other)

    def alike(self, one: Candidate, other: Candidate) -> bool:
        """Do they differ in states and reductions only?"""
        return self._trace_key(one) == self._trace_key(other)

    def _guess(self, candidate: Candidate, right: _Correction) -> Cost:
        activations, micro, workspace = self._whole(candidate.memory)
        share = candidate.batch / candidate.layout.tiles
        kept, slowest, played = 1.0, 1.0, float(candidate.accumulate)
        if candidate.layout.pipe > 1:
            kept, slowest, played = self._split(candidate)
            kept *= _STAGED
        activations *= kept * share * right.activations
        micro *= share * right.compute
        compute = micro * slowest * candidate.accumulate + self._updating(candidate)
        return Cost(
            self._memory(candidate, activations, right.halo_bytes * candidate.batch, workspace),
            TimeParts(
                compute,
                right.halo_seconds * candidate.batch * candidate.accumulate,
                self._reduction(candidate),
                micro * max(played - slowest * candidate.accumulate, 0),
                self._delay(candidate, compute),
            ),
            candidate.global_batch,
        )

    def _derived(self, candidate: Candidate, like: Candidate, cost: Cost) -> Cost:
        """The cost of a candidate that has the same trace, with its own states and reductions."""
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
        delay = self._delay(candidate, compute)
        time = TimeParts(compute, cost.time.halo * growth, max(reduction, 0.0), cost.time.bubble, delay)
        return Cost(memory, time, candidate.global_batch)

    def _whole(self, memory: MemoryConfig) -> tuple[float, float, float]:
        """The activations, the seconds of a micro-batch of one, and the workspace of a whole image."""
        if (cost := self._base.whole.get(memory)) is not None:
            micro = max(cost.time.compute - self._update, cost.time.compute / 2)
            return float(cost.memory.activations), micro, float(cost.memory.workspace)
        if memory.lean_norm:
            activations, micro, workspace = self._whole(memory.model_copy(update={"lean_norm": False}))
            return _LEAN * activations, micro, workspace
        streamed = next((one for one in self._base.whole if one.stream_strips > 1), None)
        if memory.stream_strips > 1 and streamed is not None:
            activations, micro, workspace = self._whole(streamed)
            return activations * min(1.0, streamed.stream_strips / memory.stream_strips), micro, workspace
        return self._whole(PLAIN)

    def _memory(self, candidate: Candidate, activations: float, halos: float, workspace: float) -> MemoryParts:
        parts = (*rough_states_of(candidate, self._states), activations, halos, workspace)
        return MemoryParts(*(round(size) for size in parts))

    def _updating(self, candidate: Candidate) -> float:
        pipe, sharing = candidate.layout.pipe, updating_ranks(candidate)
        seconds = self._update / pipe / sharing
        if candidate.offload:  # gradients out, weights back
            seconds += 2 * self._states.weights / pipe / sharing / _HOST_BYTES_PER_SECOND
        return seconds

    def _reduction(self, candidate: Candidate) -> float:
        parameters = self._base.whole[PLAIN].memory.weights // FLOAT_BYTES // candidate.layout.pipe
        return reduction_seconds(self._problem.ds, candidate, parameters, self._hardware, self._ranks_per_node)

    def _delay(self, candidate: Candidate, busy_seconds: float) -> float:
        return expected_delay_seconds(self._hardware, candidate.layout.world_size, busy_seconds)

    def _trace_key(self, candidate: Candidate) -> tuple[object, ...]:
        return trace_key(candidate, self._problem.config.model.norm_scope, self._ranks_per_node)


def _ratio(traced: float, guessed: float) -> float:
    return traced / guessed if guessed > 0 else 1.0


def _group(candidate: Candidate) -> tuple[object, ...]:
    """Candidates of one group are like each other in what a guess leaves out."""
    memory, layout = candidate.memory, candidate.layout
    return layout.pipe, layout.tiles, memory.stream_strips, memory.lean_norm, memory.recompute, memory.lit_block
