"""A plan is explained in one sentence that a physicist understands."""

from lartpc_ds.advise.search.search import Plan, Row
from lartpc_ds.advise.search.sizes import gib
from lartpc_ds.costs.problem import Candidate, Cost, TimeParts

__all__ = ["levers_of", "reason"]

_TOLD = 0.01
"""The share of a step from which on waiting for delayed devices is mentioned."""


def reason(plan: Plan) -> str:
    """Say what to take and why; where nothing fits, say by how much not and what would."""
    return _nothing_fits(plan) if plan.recommended is None else _recommendation(plan, plan.recommended)


def levers_of(candidate: Candidate) -> str:
    """Name a candidate's levers on activations in a word or two; empty where it has none."""
    memory = candidate.memory
    words = [f"{memory.stream_strips} strips"] if memory.stream_strips > 1 else []
    words += ["lit"] if memory.lit_block else []
    words += {"none": [], "block": ["recompute"], "auto": ["recompute bright events"]}[memory.recompute]
    return " + ".join([*words, *(["lean norms"] if memory.lean_norm else [])])


def _recommendation(plan: Plan, row: Row) -> str:
    candidate, need, have = row.candidate, plan.whole.memory.total, plan.limit_bytes
    layout, peak = candidate.layout, gib(row.cost.memory.total)
    levers = levers_of(candidate)
    parts = [part for part in (_batch(candidate), _states(candidate), levers) if part]
    with_ = f" with {', '.join(parts)}" if parts else ""
    fits = need <= have
    if fits:
        before = f"a whole event fits on one device ({gib(need)} of the {gib(have)} GiB that may be used)"
    else:
        before = f"a whole event needs {gib(need)} GiB and a device has {gib(have)} GiB for it"
    if layout.pipe > 1:
        tiles = f" of {layout.tiles} tiles" if layout.tiles > 1 else ""
        after = f"{layout.pipe} stages{tiles}{with_} need {peak} GiB at most"
    elif layout.tiles > 1:
        after = f"{layout.tiles} tiles{with_} need {peak} GiB each"
    elif fits and not levers:
        after = f"{'every device takes events of its own' if layout.data > 1 else 'it is left whole'}{with_}"
    else:
        after = f"one device{with_} needs {peak} GiB"
    return f"Take {layout}: {before}; {after}, and {_price(row)}."


def _batch(candidate: Candidate) -> str:
    return f"{candidate.batch} events a micro-batch" if candidate.batch > 1 else ""


def _states(candidate: Candidate) -> str:
    stage = f"ZeRO-{candidate.zero}" if candidate.zero else ""
    return f"{stage} and the optimizer in the host's memory" if candidate.offload else stage


def _price(row: Row) -> str:
    time, layout = row.cost.time, row.candidate.layout
    spent = [f"halos take {_share(time.halo, time)}"] if layout.tiles > 1 else []
    spent += [f"summing gradients takes {_share(time.reduction, time)}"] if layout.data * layout.tiles > 1 else []
    spent += [f"waiting for other stages takes {_share(time.bubble, time)}"] if layout.pipe > 1 else []
    if time.delay > _TOLD * time.total:
        spent += [f"waiting for delayed devices takes {_share(time.delay, time)}"]
    if not spent:
        return _step(row.cost)
    *rest, last = spent
    shares = f"{', '.join(rest)} and {last} of a step" if rest else f"{last} of a step"
    return shares if row.cost.brightest_seconds is None else f"{_step(row.cost)}, where {shares}"


def _step(cost: Cost) -> str:
    if cost.brightest_seconds is None:
        return f"a step takes {cost.time.total:.3g} s"
    return f"a step takes {cost.time.total:.3g} s on median events and {cost.brightest_seconds:.3g} s on the brightest"


def _share(seconds: float, time: TimeParts) -> str:
    share = 100 * seconds / time.total
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"


def _nothing_fits(plan: Plan) -> str:
    if not plan.rows:
        return "Nothing can run: every way to share the devices is refused below."
    least = plan.rows[0]
    need, layout = least.cost.memory.total, least.candidate.layout
    levers = levers_of(least.candidate)
    told = (
        f"Nothing fits: the smallest way, {layout}{f' with {levers}' if levers else ''}, needs {gib(need)} GiB a "
        f"device, {gib(need - plan.limit_bytes)} GiB more than the {gib(plan.limit_bytes)} GiB that may be used"
    )
    if plan.wider is None:
        return f"{told}; devices of {gib(_device(plan, need))} GiB would do."
    wide = plan.wider.candidate
    words = levers_of(wide)
    return (
        f"{told}; {wide.layout.world_size} devices would do ({wide.layout}{f' with {words}' if words else ''}, "
        f"{gib(plan.wider.cost.memory.total)} GiB each), or devices of {gib(_device(plan, need))} GiB."
    )


def _device(plan: Plan, need: int) -> int:
    """The memory of a device on which `need` may be used, with the same share left free."""
    return int(need * plan.memory_bytes / plan.limit_bytes)
