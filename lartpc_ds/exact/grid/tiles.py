"""What a converted layer knows of its tile group, and the three messages it may send.

Layers get a `Tiles` as an argument and never ask torch.distributed who they are. `exchange` is the halo's one message a
peer; `all_reduce` and `all_gather` carry statistics. `Imagined` answers all three on meta tensors without a process
group: so a plan is checked, and its memory measured, for any rank of any layout on one machine.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor

from lartpc_ds.exact.grid.remade import Remade
from lartpc_ds.exact.grid.windows import Piece, Rect

__all__ = ["Alone", "Clock", "Group", "Imagined", "Live", "Tiles", "Traffic"]

Wait = Callable[[], list[Tensor]]


class Group:
    """Messages among `size` ranks, of which this is number `index`; size 1 sends none."""

    size: int
    index: int

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """Send contiguous tensors to peers and fill others from peers; call the result, once or more, to wait."""
        raise AssertionError("a subclass says how")

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """The sum (or `op`) over all ranks, in place."""
        raise AssertionError("a subclass says how")

    def all_gather(self, values: Tensor) -> Tensor:
        """Everybody's values: (size, *values.shape)."""
        raise AssertionError("a subclass says how")


class Alone(Group):
    """This rank and nobody else, without a process group."""

    size, index = 1, 0

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """As in the base class."""
        assert not outgoing and not incoming
        return lambda: []

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """As in the base class."""
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """As in the base class."""
        return values[None]


@dataclass
class Traffic:
    """What a group's messages cost this rank so far: seconds are those it waited."""

    sent_bytes: int = 0
    wait_seconds: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside."""
        started = time.perf_counter()
        yield
        self.wait_seconds += time.perf_counter() - started


class Live(Group):
    """A real process group."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic) -> None:
        self._traffic = traffic
        self._group = group
        self._ranks = dist.get_process_group_ranks(group)
        self.size, self.index = len(self._ranks), dist.get_rank(group)

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """As in the base class."""
        messages = [
            dist.P2POp(function, tensor, self._ranks[peer], self._group)
            for function, side in ((dist.irecv, incoming), (dist.isend, outgoing))
            for peer, tensor in side
        ]
        works = dist.batch_isend_irecv(messages) if messages else []
        self._traffic.sent_bytes += sum(tensor.nbytes for _, tensor in outgoing)

        def wait() -> list[Tensor]:
            with self._traffic.waiting():
                for work in works:
                    work.wait()
            works.clear()  # a second wait for the same message would never end
            messages.clear()  # what was sent had to live until now
            return [tensor for _, tensor in incoming]

        return wait

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """As in the base class."""
        if self.size > 1:
            self._traffic.sent_bytes += values.nbytes
            with self._traffic.waiting():
                dist.all_reduce(values, op, self._group)
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """As in the base class."""
        if self.size == 1:
            return values[None]
        gathered = values.new_empty(self.size, *values.shape)
        self._traffic.sent_bytes += values.nbytes
        with self._traffic.waiting():
            dist.all_gather(list(gathered.unbind()), values.contiguous(), self._group)
        return gathered


@dataclass
class Imagined(Group):
    """A group of which only this rank exists, on the meta device; counts the bytes that it would send."""

    size: int
    index: int
    sent_bytes: int = 0

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """As in the base class."""
        self.sent_bytes += sum(tensor.nbytes for _, tensor in outgoing)
        return lambda: [tensor for _, tensor in incoming]

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """As in the base class."""
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """As in the base class."""
        return values.new_empty(self.size, *values.shape)


@dataclass
class Clock:
    """Which micro-batch the model works on: part of the key of every random mask."""

    seed: int = 0
    step: int = 0
    micro_batch: int = 0
    """Index in the global batch, the same for all tiles of a group."""


@dataclass(frozen=True)
class Tiles:
    """One rank's place in its tile group.

    `norm` is the group over which batch statistics of tiles run: the tile group itself, or with the data axis;
    `whole_norm` that of maps which every tile rank holds whole: this rank alone, or the data axis.
    """

    rows: int
    cols: int
    group: Group
    norm: Group
    whole_norm: Group
    overlap: bool = True
    """Compute a convolution's interior while its halo is under way."""
    clock: Clock = field(default_factory=Clock)
    traffic: Traffic = field(default_factory=Traffic)
    remade: Remade = field(default_factory=Remade)
    """Maps that are not kept but made again."""

    @property
    def row(self) -> int:
        """Of this rank."""
        return self.group.index // self.cols

    @property
    def col(self) -> int:
        """Of this rank."""
        return self.group.index % self.cols

    def send_pieces(
        self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[Piece], like: Tensor
    ) -> Callable[[], list[tuple[Rect, Tensor]]]:
        """Exchange rectangles of a map (N, C, height, width); messages are channels-last whatever the map is.

        `like` gives events, channels, type and device of what comes in.
        """
        packed = [(peer, tensor.permute(0, 2, 3, 1).contiguous()) for peer, tensor in outgoing]
        events, channels = like.shape[:2]
        empty = [(piece.peer, like.new_empty((events, *piece.rect.shape, channels))) for piece in incoming]
        wait = self.group.exchange(packed, empty)

        def pieces() -> list[tuple[Rect, Tensor]]:
            return [(piece.rect, buffer.permute(0, 3, 1, 2)) for piece, buffer in zip(incoming, wait(), strict=True)]

        return pieces
