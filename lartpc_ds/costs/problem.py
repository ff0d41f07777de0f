"""A problem is what the planner is asked, a candidate is one answer, and a cost is what it takes: plain data."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import MemoryConfig, RunConfig
from lartpc_ds.data.lit_shares import Cells
from lartpc_ds.exact.grid.patches import Bits
from lartpc_ds.exact.memory.lit_plan import LitPlan
from lartpc_ds.layout import Layout

__all__ = ["Candidate", "Cost", "LitEvents", "MemoryParts", "Problem", "TimeParts", "trace_key"]

_NO_LEVERS = MemoryConfig()


@dataclass(frozen=True, eq=False)
class LitEvents:
    """The two events by which the planner knows what a run pays that computes only what is lit."""

    plan: LitPlan
    """How the network runs on what is lit."""
    median: Bits
    """The lit pixels of an event of median cost, (1, rows, columns)."""
    brightest: Bits
    """Those of the event that costs most."""
    origin: str
    """What they were chosen from, such as "20 simulated events"."""

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of the image's patches that the two light."""
        median, brightest = (self.plan.cut.shares(Cells.of_bits(lit))[0] for lit in (self.median, self.brightest))
        return median, brightest


@dataclass(frozen=True)
class Problem:
    """A run as the user wrote it, without its events, but for those two on which a lit step is traced."""

    config: RunConfig
    ds: DeepSpeedConfig
    """The DeepSpeed JSON, checked but not completed."""
    image: tuple[int, int, int]
    """The image that the network sees: (planes, rows, columns)."""
    make_model: Callable[[], nn.Module]
    """Makes the network of one device; it is called where weights have no memory (`exact.trace.dry_run`)."""
    lit: LitEvents | None = None
    """None where no candidate computes only what is lit."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a problem; every field but `zero` and `offload` means what its key in the run TOML means."""

    layout: Layout
    batch: int = 1
    accumulate: int = 1
    zero: int = 0
    offload: bool = False
    """DeepSpeed's optimizer states are in the host's memory."""
    memory: MemoryConfig = _NO_LEVERS
    gather_at: str = "auto"
    cuts: str | tuple[str, ...] = "balanced"
    overlap: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"memory": self.memory.model_dump(mode="json")}

    @property
    def sharing_ranks(self) -> int:
        """How many ranks have the same weights: ZeRO shares their states out among these."""
        return self.layout.data * self.layout.tiles

    @property
    def global_batch(self) -> int:
        """How many events an optimizer step has."""
        return self.batch * self.accumulate * self.layout.data


def trace_key(candidate: Candidate, norm_scope: str, ranks_per_node: int) -> tuple[object, ...]:
    """Candidates with the same key differ in the states and reductions of weights only, so one trace serves all.

    With one micro-batch more than stages, every stage runs all kinds of passes; more of them repeat these.
    """
    layout = candidate.layout
    return (
        *(layout.pipe, layout.rows, layout.cols, min(ranks_per_node, layout.world_size)),
        *(candidate.batch, min(candidate.accumulate, layout.pipe + 1), candidate.memory),
        *(candidate.gather_at, candidate.cuts, candidate.overlap),
        layout.data if norm_scope == "all" else 0,
    )


@dataclass(frozen=True)
class MemoryParts:
    """The bytes of the fullest rank at its peak, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    halos: int
    workspace: int
    """The scratch of kernels, buffers of collectives, and what a process has beside tensors."""

    @property
    def total(self) -> int:
        """The peak: all parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class TimeParts:
    """The seconds of an optimizer step, by what they are spent on."""

    compute: float
    """The time of the fullest rank's computation."""
    halo: float
    """The time of messages and statistics of tiles that no computation hides."""
    reduction: float
    """The time in which gradients and, with ZeRO, weights travel."""
    bubble: float
    """The time that the stages of a pipeline wait."""
    delay: float = 0.0
    """The expected wait for whichever rank is held up at random (`costs.stragglers`)."""

    @property
    def total(self) -> float:
        """The time of the step: all parts together."""
        return self.compute + self.halo + self.reduction + self.bubble + self.delay


@dataclass(frozen=True)
class Cost:
    """What a candidate takes in memory and time.

    Where only what is lit is computed, the memory is that of micro-batches of the brightest event, and the time that of
    micro-batches of the median one.
    """

    memory: MemoryParts
    time: TimeParts
    global_batch: int
    brightest_seconds: float | None = None
    """The time of a step on the brightest event, where the step depends on its events and was traced."""

    @property
    def events_per_second(self) -> float:
        """How many events the whole job trains per second."""
        return self.global_batch / self.time.total
