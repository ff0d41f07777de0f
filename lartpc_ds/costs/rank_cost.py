"""What a candidate costs: the fullest rank of every pipeline stage is traced, and a step is put together from them.

Activations, scratch and time come from a run of the converted model (`stage_trace`), the states of weights from what
DeepSpeed keeps (`states`), the order of a pipeline from `schedule`.
"""

from dataclasses import replace

from lartpc_ds.config.run import Recompute
from lartpc_ds.costs.applied import applied
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, Problem, TimeParts, trace_key
from lartpc_ds.costs.roofline import send_seconds
from lartpc_ds.costs.schedule import step_ns
from lartpc_ds.costs.stage_trace import Partition, StageTrace, trace_stages
from lartpc_ds.costs.stages import check_zero, cut_rates, plan_stages
from lartpc_ds.costs.stragglers import expected_delay_seconds
from lartpc_ds.costs.zero import FLOAT_BYTES, reduction_seconds, states_of, updating_ranks
from lartpc_ds.exact.memory.strip_plan import plan_strips
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.exact.trace.dry_run import built_without_memory
from lartpc_ds.models.build import blocks

__all__ = ["Costs", "cost"]

Stages = list[StageTrace]
"""The traces of all stages of a pipeline."""


def cost(problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> Cost:
    """Predict the memory of the fullest rank and the time of a step.

    Args:
        problem: the run.
        candidate: one way to run it; its layout has the world's size.
        hardware: the machine.
        ranks_per_node: how many ranks a machine has.

    Raises:
        UserError: the network cannot run so.
    """
    traces = _traced(problem, candidate, hardware, ranks_per_node)
    return _put_together(problem, candidate, hardware, ranks_per_node, traces)


class Costs:
    """Predicts as `cost` does, but traces only once what differs in states and reductions alone.

    Nearly all of the time of a prediction is its trace.
    """

    def __init__(self) -> None:
        self._traces: dict[tuple[object, ...], list[Stages]] = {}

    def __call__(self, problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> Cost:
        """Predict what a candidate costs; an object serves one problem and one machine."""
        key = trace_key(candidate, problem.config.model.norm_scope, ranks_per_node)
        if key not in self._traces:
            self._traces[key] = _traced(problem, candidate, hardware, ranks_per_node)
        return _put_together(problem, candidate, hardware, ranks_per_node, self._traces[key])


def _traced(problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> list[Stages]:
    """The traces of the median and of the brightest event, or of any event where all are alike."""
    partition = _partition(problem, candidate)
    if not candidate.memory.lit_block:
        return [trace_stages(problem, candidate, hardware, ranks_per_node, partition)]
    assert problem.lit is not None and candidate.layout.tiles == candidate.layout.pipe == 1
    kind = candidate.memory.recompute
    # a run recomputes what would not fit, so memory must hold what recomputation leaves of the brightest event
    kinds: tuple[Recompute, Recompute] = ("none", "block") if kind == "auto" else (kind, kind)
    traces = []
    for pixels, recompute in zip((problem.lit.median, problem.lit.brightest), kinds, strict=True):
        memory = candidate.memory.model_copy(update={"recompute": recompute})
        one = replace(candidate, memory=memory)
        traces.append(trace_stages(problem, one, hardware, ranks_per_node, partition, pixels))
    return traces


def _put_together(
    problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int, traces: list[Stages]
) -> Cost:
    times = [_time(problem, candidate, hardware, ranks_per_node, stages) for stages in traces]
    memory = [_memory(problem, candidate, hardware, stage) for stages in traces for stage in stages]
    fullest = max(memory, key=lambda parts: parts.total)
    return Cost(fullest, times[0], candidate.global_batch, times[1].total if len(times) > 1 else None)


def _partition(problem: Problem, candidate: Candidate) -> Partition:
    """Partition the network as a run does, and refuse what a run refuses."""
    config, ds = applied(problem.config, problem.ds, candidate)
    layout, memory, image = candidate.layout, candidate.memory, problem.image
    check_zero(config, ds, layout)
    model = built_without_memory(problem.make_model).train()
    tiles = plan_tiles(model, layout, image, candidate.gather_at, config.model.norm_scope, memory.lean_norm)
    strips = None
    if memory.stream_strips > 1:
        strips = plan_strips(model, memory.stream_strips, memory.stream_until, image)
    if memory.recompute != "none":
        blocks(model)
    return Partition(tiles, strips, plan_stages(config, ds, layout, model, image, tiles, cut_rates()))


def _memory(problem: Problem, candidate: Candidate, hardware: Hardware, stage: StageTrace) -> MemoryParts:
    """The memory of the passes or of the update of the weights, whichever takes more."""
    on_host = hardware.device == "cpu"
    states = states_of(problem.ds, candidate, stage.parameters, on_host)
    peak = stage.peak
    passes = MemoryParts(
        weights=states.weights + peak.buffers,
        gradients=states.gradients_before + round(states.gradient_share * peak.gradients),
        optimizer=states.optimizer,
        activations=peak.activations,
        halos=peak.halos,
        workspace=peak.scratch + states.buffers + hardware.process_bytes,
    )
    if passes.total >= states.update + hardware.process_bytes:
        return passes
    gradients = stage.parameters * FLOAT_BYTES
    rest = states.update - states.weights - states.optimizer - gradients
    return MemoryParts(
        states.weights, gradients, states.optimizer, 0, 0, workspace=max(rest, 0) + hardware.process_bytes
    )


def _time(problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int, stages: Stages) -> TimeParts:
    """The schedule gives the time of the passes; all stages then sum gradients and update weights at once."""
    near = candidate.layout.world_size <= ranks_per_node
    links = hardware.within if near else hardware.across
    # a map goes forward and its gradient comes back, neither of which DeepSpeed overlaps with anything
    sends = [send_seconds(stage.output_bytes, links) if stage.output_bytes else 0.0 for stage in stages]
    halo = [stage.exposed_seconds / 2 for stage in stages]
    forward = [s.forward_seconds + w + send for s, w, send in zip(stages, halo, sends, strict=True)]
    backward = [s.backward_seconds + w + send for s, w, send in zip(stages, halo, [0.0, *sends[:-1]], strict=True)]
    step = step_ns(_in_ns(forward), _in_ns(backward), candidate.accumulate) / 1e9
    slowest = max(stages, key=lambda one: one.forward_seconds + one.backward_seconds + one.exposed_seconds)
    computed = candidate.accumulate * (slowest.forward_seconds + slowest.backward_seconds)
    waited = candidate.accumulate * slowest.exposed_seconds
    update = max(stage.update_seconds for stage in stages) / updating_ranks(candidate)
    rates = hardware.shared_by(min(ranks_per_node, candidate.layout.world_size))
    busy = computed + update + rates.step_seconds
    return TimeParts(
        compute=busy,
        halo=waited,
        reduction=max(
            reduction_seconds(problem.ds, candidate, stage.parameters, hardware, ranks_per_node) for stage in stages
        ),
        bubble=max(step - computed - waited, 0.0),
        delay=expected_delay_seconds(hardware, candidate.layout.world_size, busy),
    )


def _in_ns(seconds: list[float]) -> list[int]:
    return [round(one * 1e9) for one in seconds]
