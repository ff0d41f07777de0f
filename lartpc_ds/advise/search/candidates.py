"""The candidates are every layout of so many devices, with whatever goes with each.

What is left out is left out by a rule that can be said in a sentence, and the sentence is kept: nobody believes a
planner that is silent about what it did not try.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import MemoryConfig, Recompute
from lartpc_ds.costs.applied import as_written, offloads
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Problem
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.models.build import blocks

__all__ = ["STRIPS", "Choices", "choices", "grids", "simplicity"]

STRIPS = (4, 8, 12, 16)
_BATCHES = (1, 2, 4, 8, 16, 32)
_LARGEST_LIT = 4
"""The most lit events of a micro-batch: a trace finds the patches of each, and more would take too long."""
_SMALLEST_TILE = 32
"""The fewest pixels per side: below it, halos are most of a tile at the first layers already."""
_MICRO_BATCHES = 4
"""How many micro-batches per stage: a pipeline of S stages and 4 S of them waits for less than a fifth of the time."""


@dataclass(frozen=True)
class Choices:
    """Ways to run a problem, and the sentences about those that are left out."""

    candidates: list[Candidate]
    refused: list[str]


def choices(
    problem: Problem, hardware: Hardware, devices: int, ranks_per_node: int, global_batch: int | None = None
) -> Choices:
    """Find all that may be taken on so many devices.

    Args:
        problem: the run.
        hardware: the machine.
        devices: of the whole job.
        ranks_per_node: devices of one machine.
        global_batch: events of an optimizer step; None: whatever comes of data.batch, train.accumulate and the layout.

    Raises:
        UserError: no layout has such a global batch.
    """
    stages, refused = _stages(problem)
    grids, more = _grids(problem, devices, stages, ranks_per_node)
    refused += more
    states = {pipe: list(_states(problem, hardware, pipe)) for pipe in (1, 2)}
    refused += _about_states(problem, hardware, stages)
    refused += _about_lit(problem)
    found = [
        Candidate(layout, batch, accumulate, zero, offload, memory, *_kept(problem))
        for layout in grids
        for batch, accumulate in _batches(problem, layout, global_batch)
        for zero, offload in _useful(states[min(layout.pipe, 2)], layout)
        for memory in _levers(problem, layout, stages > 0)
        if not memory.lit_block or batch <= _LARGEST_LIT or batch == problem.config.data.batch
    ]
    if not found and global_batch is not None:
        raise UserError(
            f"--global-batch {global_batch}: no way to share {devices} device(s) has it: it must be a multiple "
            f"of layout.data, which may be {', '.join(map(str, sorted({one.data for one in grids})))}"
        )
    return Choices(found, refused)


def _kept(problem: Problem) -> tuple[str, str | tuple[str, ...], bool]:
    """The values of what is tried later, on the best candidate only: gather point, cuts and overlap."""
    layout = problem.config.layout
    return layout.gather_at, "balanced", layout.overlap


def _stages(problem: Problem) -> tuple[int, list[str]]:
    """The most pipeline stages, which is 0 for a model without blocks, and the sentence about it."""
    from lartpc_ds.exact.trace.dry_run import built_without_memory

    model = built_without_memory(problem.make_model)
    try:
        sequence = blocks(model)
    except UserError as error:
        return 0, [f"pipeline stages, block recomputation and streaming are not offered: {error}"]
    return sum(any(value.requires_grad for value in block.parameters()) for _, block in sequence), []


def _grids(problem: Problem, devices: int, stages: int, ranks_per_node: int) -> tuple[list[Layout], list[str]]:
    _, height, width = problem.image
    found, straddling, thin = [], set(), set()
    for pipe in _divisors(devices):
        if pipe > max(stages, 1):
            continue
        for tiles in _divisors(devices // pipe):
            if devices > ranks_per_node and tiles % ranks_per_node and ranks_per_node % tiles:
                straddling.add(tiles)
                continue
            shapes = grids(tiles, height, width)
            if not shapes:
                thin.add(tiles)
            found += [Layout(pipe, devices // pipe // tiles, *shape) for shape in shapes[:1]]
    refused = []
    if straddling:
        refused.append(
            f"{_either(straddling)} tiles an event are not offered: with {ranks_per_node} devices a machine, some "
            "events would have tiles on two machines, whose link is slower than the machine's own"
        )
    if thin:
        refused.append(
            f"{min(thin)} or more tiles an event are not offered: tiles of an image of {height} x {width} would be "
            f"under {_SMALLEST_TILE} pixels wide, mostly halo"
        )
    most = max(stages, 1)
    if stages and any(most < pipe for pipe in _divisors(devices)):
        refused.append(f"more than {most} pipeline stages are not offered: the network has {most} blocks with weights")
    return found, refused


def grids(tiles: int, height: int, width: int) -> list[tuple[int, int]]:
    """The grids of so many tiles of an image, none too thin; those with the shortest seams first."""
    allowed = [
        (rows, tiles // rows)
        for rows in _divisors(tiles)
        if (rows == 1 or height // rows >= _SMALLEST_TILE)
        and (rows == tiles or width // (tiles // rows) >= _SMALLEST_TILE)
    ]
    return sorted(allowed, key=lambda grid: (grid[0] - 1) * width + (grid[1] - 1) * height)


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _either(numbers: Iterable[int]) -> str:
    *rest, last = map(str, sorted(numbers))
    return f"{', '.join(rest)} or {last}" if rest else last


def _batches(problem: Problem, layout: Layout, global_batch: int | None) -> Iterator[tuple[int, int]]:
    """The pairs of micro-batch and accumulation that go with a layout."""
    config = problem.config
    for batch in sorted({config.data.batch, *_BATCHES}):
        if global_batch is None:
            yield batch, config.train.accumulate
            if layout.pipe > 1 and config.train.accumulate < _MICRO_BATCHES * layout.pipe:
                yield batch, _MICRO_BATCHES * layout.pipe
        elif global_batch % (batch * layout.data) == 0:
            yield batch, global_batch // (batch * layout.data)


def _states(problem: Problem, hardware: Hardware, pipe: int) -> Iterator[tuple[int, bool]]:
    """The pairs of ZeRO stage and offload that go with so many pipeline stages."""
    for stage in range(4 if pipe == 1 else 2):
        yield stage, False
        if stage and (offloads(problem.ds) or _may_offload(problem.ds, hardware)):
            yield stage, True


def _may_offload(ds: DeepSpeedConfig, hardware: Hardware) -> bool:
    return hardware.device == "cuda" and ds["optimizer"]["type"] in ("Adam", "AdamW")


def _about_states(problem: Problem, hardware: Hardware, stages: int) -> list[str]:
    refused = []
    if stages > 1:
        refused.append(
            "ZeRO-2 and ZeRO-3 do not go with pipeline stages, which keep the gradients of all micro-batches until the "
            "end of a step"
        )
    if not (offloads(problem.ds) or _may_offload(problem.ds, hardware)):
        why = (
            "on a CPU the host's memory is the device's"
            if hardware.device == "cpu"
            else f"DeepSpeed has Adam and AdamW for the host's cores, not {problem.ds['optimizer']['type']}"
        )
        refused.append(f"optimizer offload is not offered: {why}")
    return refused


def _useful(states: Sequence[tuple[int, bool]], layout: Layout) -> list[tuple[int, bool]]:
    """The pairs that are of use: a rank that shares its weights with nobody has nothing to shard."""
    if layout.data * layout.tiles > 1:
        return list(states)
    return [*states[:1], *(state for state in states if state[1])][:2]


def _about_lit(problem: Problem) -> list[str]:
    if problem.lit is None:
        return []
    refused = [
        f"micro-batches of more than {_LARGEST_LIT} lit events are not offered, unless your data.batch is one, because "
        "the patches of each event must be found"
    ]
    if problem.config.memory.lit_block:
        refused.append(
            "strips are not offered, and tiles and pipeline stages compute whole maps, because neither goes with "
            "memory.lit_block"
        )
    return refused


def _levers(problem: Problem, layout: Layout, has_blocks: bool) -> list[MemoryConfig]:
    kinds: tuple[Recompute, ...] = ("none", "block") if has_blocks else ("none",)
    mine, alone = problem.config.memory, layout.tiles == layout.pipe == 1
    whole = [MemoryConfig(recompute=kind, lean_norm=lean) for kind, lean in product(kinds, (False, True))]
    wanted = {"lit_block": mine.lit_block or "auto", "lit_until": mine.lit_until}
    lit = [one.model_copy(update=wanted) for one in whole] if alone and problem.lit is not None else []
    if mine.lit_block:
        return lit or whole
    found = [*whole, *lit]
    if has_blocks and alone:
        found += [MemoryConfig(stream_strips=strips) for strips in STRIPS]
    return found if mine in found or (mine.stream_strips > 1 and not alone) else [*found, mine]


def simplicity(candidate: Candidate, problem: Problem) -> tuple[int, ...]:
    """A key by which the simpler candidate is smaller: fewer axes, no levers, no offload, a lower ZeRO stage."""
    layout, memory = candidate.layout, candidate.memory
    mine = as_written(problem.config, problem.ds, layout)
    return (
        sum(axis > 1 for axis in (layout.pipe, layout.rows, layout.cols)),
        int(memory.stream_strips > 1) + int(memory.recompute != "none") + int(memory.lit_block != 0),
        int(candidate.offload),
        int(memory.lean_norm),
        candidate.zero,
        int(candidate.batch != mine.batch) + int(candidate.accumulate != mine.accumulate),
        layout.pipe * layout.tiles,
        candidate.batch,
        int(candidate.gather_at != mine.gather_at) + int(candidate.overlap != mine.overlap),
    )
