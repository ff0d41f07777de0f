"""The two events by which a plan knows what a run costs that computes only what is lit: a median and the brightest one.

They are those of `--lit-share` (straight tracks that light so much of an image), or events of the run's files, or, of
a run without files, simulated ones. Only their lit pixels are kept, because a cost depends on nothing else of them.
Rejected: a cost from the share alone, because how far charge spreads in deep layers depends on how it lies; and
simulated events in place of files that cannot be read, because single particles say nothing about cosmic rays.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.problem import LitEvents, Problem
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.patches import Bits, Integers
from lartpc_ds.exact.memory.light import lit_pixels
from lartpc_ds.exact.memory.lit_plan import LitPlan, plan_lit
from lartpc_ds.exact.trace.dry_run import built_without_memory
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.training.sources import open_source

__all__ = ["parse_shares", "tracks", "with_lit_events"]

_LOOKED_AT = 50
"""The most events that are read."""
_SIMULATED = 20


def parse_shares(text: str) -> tuple[float, float]:
    """The shares of patches that `--lit-share` gives, of the median and of the brightest event.

    Raises:
        UserError: they are no such shares.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) not in (1, 2) or not all(0 < share <= 1 for share in shares) or shares[0] > shares[-1]:
        raise UserError(
            f"--lit-share {text!r}: must be the share of the image's patches that charge lights in the median event, "
            "above 0 and at most 1, or this share and that of the brightest event, which is not smaller; such as 0.02 "
            "or 0.02,0.06"
        )
    return shares[0], shares[-1]


def with_lit_events(problem: Problem, told: str | None, console: Console) -> Problem:
    """The problem with the events on which lit steps are traced, if the run or `--lit-share` asks for such steps.

    Args:
        problem: the run.
        told: what `--lit-share` says; None: the events are looked at, or simulated.
        console: for progress.

    Raises:
        UserError: the share is none, the network cannot run on patches, or there are no events to look at.
    """
    memory = problem.config.memory
    if memory.lit_block == 0 and told is None:
        return problem
    shares = None if told is None else parse_shares(told)
    model = built_without_memory(problem.make_model).train()
    plan = plan_lit(model, memory.lit_block or "auto", memory.lit_until, problem.image)
    if shares is not None:
        median, brightest = (tracks(plan, share) for share in shares)
        return replace(
            problem, lit=LitEvents(plan, median, brightest, f"events of straight tracks (--lit-share {told})")
        )
    try:
        return replace(problem, lit=_of_events(problem.config, plan, console))
    except UserError as error:
        raise UserError(f"{error}; to plan without looking at events, say --lit-share") from None


def _of_events(config: RunConfig, plan: LitPlan, console: Console) -> LitEvents:
    """Look at the events of a run, or at simulated ones where it has none."""
    data = config.data
    if data.files or data.target is not None:
        return _looked_at(config, plan, "events of the run")
    few = data.simulate.model_copy(update={"events": min(data.simulate.events, _SIMULATED)})
    config = config.model_copy(update={"data": data.model_copy(update={"simulate": few})})
    with TemporaryDirectory(prefix="lartpc-ds-plan-") as folder:
        return _looked_at(simulated_events(config, Path(folder) / "simulated.h5", console), plan, "simulated events")


def _looked_at(config: RunConfig, plan: LitPlan, which: str) -> LitEvents:
    """Read events of a run, evenly spaced, and take those of median and of largest predicted cost."""
    source = open_source(config, needs_every_class=False)
    used = np.arange(len(source)) if source.labels is None else np.flatnonzero(source.labels >= 0)
    if len(used) == 0:
        raise UserError("data.classes: no event has one of these classes")
    chosen = used[np.linspace(0, len(used) - 1, min(len(used), _LOOKED_AT)).astype(np.int64)]
    images = EventDataset(source, chosen, sparse=True)

    def pixels(position: int) -> Bits:
        return lit_pixels(images[position][0].unsqueeze(0).coalesce())

    order = np.argsort([plan.cost(plan.shares(pixels(position))) for position in range(len(chosen))], kind="stable")
    median, brightest = (pixels(int(order[at])) for at in (len(order) // 2, -1))
    return LitEvents(plan, median, brightest, f"{len(chosen)} {which}")


def tracks(plan: LitPlan, share: float) -> Bits:
    """The lit pixels of an event, (1, rows, columns): straight tracks, until this share of its patches is lit.

    Each begins in a dark patch. Events of a larger share have the same tracks and more.
    """
    rows, cols = plan.rows, plan.cols
    random, lit = np.random.default_rng(0), np.zeros((1, rows.size, cols.size), np.bool_)
    bright = np.zeros(len(rows.starts) * len(cols.starts), np.bool_)
    wanted = max(1, round(share * len(bright)))
    while (missing := wanted - int(bright.sum())) > 0:
        row, col = _track(random, np.flatnonzero(~bright), plan)
        patch = row // rows.patch * len(cols.starts) + col // cols.patch
        _, first = np.unique(patch, return_index=True)
        first = np.sort(first[~bright[patch[first]]])
        stop = first[missing] if len(first) > missing else len(patch)
        lit[0, row[:stop], col[:stop]] = True
        bright[patch[:stop]] = True
    return lit


def _track(random: np.random.Generator, dark: Integers, plan: LitPlan) -> tuple[Integers, Integers]:
    """The rows and columns of a track that begins in one of the `dark` patches, in its order."""
    sizes, sides = (plan.rows.size, plan.cols.size), (plan.rows.patch, plan.cols.patch)
    patch = np.array(np.divmod(random.choice(dark), len(plan.cols.starts)))
    start = np.minimum(patch * sides + random.integers(0, sides), np.array(sizes) - 1)
    angle = random.uniform(0, 2 * np.pi)
    steps = np.arange(min(sizes) // 2 + 1)
    row, col = (
        np.rint(first + steps * slope).astype(np.int64)
        for first, slope in zip(start, (np.sin(angle), np.cos(angle)), strict=True)
    )
    inside = (row >= 0) & (row < sizes[0]) & (col >= 0) & (col < sizes[1])
    return row[inside], col[inside]
