"""The layouts over which `lartpc-ds bench planner` compares prediction and measurement: a fixed list.

Fixed, so that figures of two versions can be compared, and so that no layout is left out because it came out badly. The
images are MicroBooNE events summed to sizes at which a step takes seconds on two cores and the tensors, not the
libraries, are most of the peak. Rejected: full resolution, of which a step takes a minute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

__all__ = ["LAYOUTS", "RECIPE", "MeasuredLayout", "chosen"]

RECIPE = "microboone-full"

_LEAN = MemoryConfig(lean_norm=True)
_RECOMPUTE = MemoryConfig(recompute="block")
_BOTH = MemoryConfig(lean_norm=True, recompute="block")
_STREAM = MemoryConfig(stream_strips=8)


@dataclass(frozen=True, slots=True)
class MeasuredLayout:
    """A network that runs on images of one size in one way."""

    network: str
    downsample: int
    """The factor for wires and ticks alike; 2 gives images of 3 x 1728 x 3024."""
    way: str
    """What is special about the candidate, for the reader."""
    candidate: Candidate
    norm: Literal["layer"] | None = None

    @property
    def group(self) -> str:
        """Layouts of the same group do the same work for an event, so their times can be ranked."""
        return f"{self.network}{f'-{self.norm}' if self.norm else ''}/{self.downsample}"

    @property
    def name(self) -> str:
        """The name that the table shows."""
        return f"{self.group} {self.way}"

    @property
    def overrides(self) -> list[str]:
        """The changes of the recipe, as on a command line; the candidate says the rest."""
        norm = [f'model.norm="{self.norm}"'] if self.norm else []
        return [f'model.name="{self.network}"', f"data.downsample={self.downsample}", *norm]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all that decides what was measured."""
        named = {"network": self.network, "norm": self.norm, "downsample": self.downsample}
        return named | {"candidate": self.candidate.as_dict()}


def _one_rank(network: str, downsample: int) -> list[MeasuredLayout]:
    levers = {"plain": MemoryConfig(), "lean": _LEAN, "recompute": _RECOMPUTE, "lean+recompute": _BOTH}
    return [
        MeasuredLayout(network, downsample, way, Candidate(Layout(), zero=2, memory=memory))
        for way, memory in levers.items()
    ]


def _layouts() -> list[MeasuredLayout]:
    two_stages = Candidate(Layout(pipe=2), accumulate=4, zero=1)
    return [
        *_one_rank("resnet18", 2),
        MeasuredLayout("resnet18", 2, "2x1", Candidate(Layout(rows=2), zero=2)),
        MeasuredLayout("resnet18", 2, "1x2", Candidate(Layout(cols=2), zero=2)),
        MeasuredLayout("resnet18", 2, "2x2", Candidate(Layout(rows=2, cols=2), zero=2)),
        MeasuredLayout("resnet18", 2, "2x1 lean+recompute", Candidate(Layout(rows=2), zero=2, memory=_BOTH)),
        MeasuredLayout("resnet18", 2, "plain", Candidate(Layout(), zero=2), norm="layer"),
        MeasuredLayout("resnet18", 2, "stream 8", Candidate(Layout(), zero=2, memory=_STREAM), norm="layer"),
        MeasuredLayout("resnet18", 3, "data 2", Candidate(Layout(data=2), zero=2)),
        MeasuredLayout("resnet18", 3, "2x1", Candidate(Layout(rows=2), zero=2)),
        MeasuredLayout("resnet18", 3, "pipe 2", two_stages),
        MeasuredLayout("resnet18", 3, "data 2 2x1", Candidate(Layout(data=2, rows=2), zero=2)),
        *_one_rank("resnet50", 4),
        MeasuredLayout("resnet50", 4, "batch 2", Candidate(Layout(), batch=2, zero=2)),
        MeasuredLayout("resnet50", 4, "2x1", Candidate(Layout(rows=2), zero=2)),
        MeasuredLayout("resnet50", 4, "1x2 lean+recompute", Candidate(Layout(cols=2), zero=2, memory=_BOTH)),
        MeasuredLayout("resnet50", 4, "data 2 zero 0", Candidate(Layout(data=2), zero=0)),
        MeasuredLayout("resnet50", 4, "data 2 zero 3", Candidate(Layout(data=2), zero=3)),
        MeasuredLayout("resnet50", 4, "pipe 2", two_stages),
        MeasuredLayout("resnet50", 4, "pipe 2 2x1", Candidate(Layout(pipe=2, rows=2), accumulate=4, zero=1)),
        MeasuredLayout("resnet50", 3, "2x2 lean", Candidate(Layout(rows=2, cols=2), zero=2, memory=_LEAN)),
        MeasuredLayout("resnet50", 3, "2x1 recompute", Candidate(Layout(rows=2), zero=2, memory=_RECOMPUTE)),
    ]


LAYOUTS = {layout.name: layout for layout in _layouts()}
"""The layouts by name, in the order in which they are measured."""


def chosen(only: Sequence[str]) -> list[MeasuredLayout]:
    """The layouts whose names begin with one of `only`; all of them if that is empty.

    Raises:
        UserError: one of `only` begins no name.
    """
    for name in only:
        if not any(layout.startswith(name) for layout in LAYOUTS):
            raise UserError(f"--only {name!r}: begins no layout's name; there are {', '.join(LAYOUTS)}")
    return [layout for name, layout in LAYOUTS.items() if not only or name.startswith(tuple(only))]
