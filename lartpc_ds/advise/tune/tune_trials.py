"""The trials of a tuning are the ways of running that it tries.

The planner's best layouts, each with every ZeRO stage that goes with it. A trial is kept as the pair of configurations
that the user would train with, so the winner is written as it was measured; the short run is made of it. Rejected:
trying stages one after the other on the best layout (as an autotuner of batch sizes does), because the best layout
under ZeRO-3 is not that under ZeRO-0.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from lartpc_ds.advise.search.reasons import levers_of, reason
from lartpc_ds.advise.search.search import CostOf, Plan
from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.applied import applied
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Problem
from lartpc_ds.costs.stages import check_zero
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = ["Trial", "make_trials", "named", "parse_stages"]

_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Trial:
    """One way to run, and what the planner predicts of it."""

    name: str
    config: RunConfig
    """The configuration of the whole run, not of the short one."""
    ds: DeepSpeedConfig
    global_batch: int
    predicted_step_seconds: float
    predicted_peak_bytes: int

    @property
    def layout(self) -> Layout:
        """The layout of the run: a trial has every axis written down."""
        axes = self.config.layout
        assert axes.data is not None
        return Layout(axes.pipe, axes.data, axes.rows, axes.cols)

    @property
    def key(self) -> str:
        """A short name that only the same pair of configurations has."""
        text = json.dumps([self.config.model_dump(mode="json"), self.ds], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "config": self.config.model_dump(mode="json", exclude_none=True)}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], source: str) -> Self:
        """The inverse of `as_dict` after a way through JSON; UserError naming `source` for a bad configuration."""
        return cls(**{**tree, "config": RunConfig.parse(tree["config"], source)})


def parse_stages(text: str) -> tuple[int, ...]:
    """The ZeRO stages of `--zero-stages`, each once, in their order.

    Raises:
        UserError: not numbers from 0 to 3 between commas.
    """
    try:
        stages = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        stages = ()
    if not stages or not set(stages) <= set(_STAGES):
        raise UserError(f"--zero-stages {text!r}: must be ZeRO stages between commas, of 0, 1, 2 and 3, such as 0,1,2")
    return stages


def make_trials(
    problem: Problem,
    plan: Plan,
    hardware: Hardware,
    *,
    layouts: int,
    stages: Sequence[int],
    ranks_per_node: int,
    cost: CostOf,
) -> tuple[list[Trial], list[str]]:
    """Choose the trials; returns them and, in a sentence each, what is left out and why.

    Args:
        problem: the run.
        plan: the planner's, best first.
        hardware: the machine.
        layouts: how many of the plan's to try.
        stages: the ZeRO stages to try with each.
        ranks_per_node: ranks of a machine.
        cost: what a candidate takes.

    Raises:
        UserError: the planner finds nothing that fits, or no stage goes with any of its layouts.
    """
    fitting = [row.candidate for row in plan.rows if row.fits]
    if not fitting:
        raise UserError("\n".join([reason(plan), *plan.refused]))
    trials, left_out = [], []
    for candidate in _layouts(fitting)[:layouts]:
        for stage in stages:
            chosen = replace(candidate, zero=stage)
            try:
                _check_offload(chosen)
                config, ds = applied(problem.config, problem.ds, chosen)
                check_zero(config, ds, chosen.layout)
                found = cost(problem, chosen, hardware, ranks_per_node)
            except UserError as error:
                left_out.append(f"{named(chosen)}: {error}")
                continue
            trials.append(Trial(named(chosen), config, ds, found.global_batch, found.time.total, found.memory.total))
    if not trials:
        raise UserError("\n  ".join(["--zero-stages: none goes with a layout of the planner:", *left_out]))
    return trials, left_out


def _layouts(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of each layout; those that differ in ZeRO stage or in micro-batches alone are one."""
    first: dict[Candidate, Candidate] = {}
    for candidate in candidates:
        first.setdefault(replace(candidate, zero=0, offload=False, batch=1, accumulate=1), candidate)
    return list(first.values())


def _check_offload(candidate: Candidate) -> None:
    if candidate.offload and candidate.zero == 0:
        raise UserError("only an optimizer that ZeRO shares out can be offloaded; ZeRO-0 shares nothing")


def named(candidate: Candidate) -> str:
    """Name what is special about a candidate, in a few words."""
    axes = {name: getattr(candidate.layout, name) for name in ("pipe", "data", "rows", "cols")}
    words = [f"{name} {size}" for name, size in axes.items() if size > 1] or ["1 rank"]
    words += [f"batch {candidate.batch}"] if candidate.batch > 1 else []
    words += [f"accumulate {candidate.accumulate}"] if candidate.accumulate > 1 else []
    words += [levers] if (levers := levers_of(candidate)) else []
    words += [f"gather at {candidate.gather_at}"] if candidate.gather_at != "auto" else []
    if candidate.layout.pipe > 1 and candidate.cuts != "balanced":
        cuts = candidate.cuts
        words.append(f"cuts {cuts if isinstance(cuts, str) else '+'.join(cuts)}")
    words += ["no overlap"] if not candidate.overlap else []
    return ", ".join([*words, f"zero {candidate.zero}{' offload' if candidate.offload else ''}"])
