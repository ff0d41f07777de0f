"""`Tiles` is what a converted layer knows about its tile group, with the three messages that it may send.

Layers get a `Tiles` as an argument and never ask torch.distributed who they are. `exchange` sends the halo, in one
message per peer; `all_reduce` and `all_gather` carry statistics. `Imagined` answers all three on meta tensors without a
process group. So a plan is checked, and its memory measured, for any rank of any layout on one machine. Rejected:
asking torch.distributed inside a layer, which needs as many processes as the layout has ranks.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor
from typing_extensions import override  # typing has it from Python 3.12 on

from lartpc_ds.exact.grid.remade import Remade
from lartpc_ds.exact.grid.windows import Piece, Rect

__all__ = ["Alone", "Clock", "Group", "Imagined", "Live", "Tiles", "Traffic"]

Wait = Callable[[], list[Tensor]]


class Group:
    """A way to send messages among `size` ranks, of which this one has number `index`; one rank alone sends none."""

    size: int
    index: int

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """Send contiguous tensors to peers and fill others from peers; call the result, once or more, to wait."""
        raise AssertionError("a subclass says how")

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """Replace `values` by their sum (or `op`) over all ranks, in place, and return them."""
        raise AssertionError("a subclass says how")

    def all_gather(self, values: Tensor) -> Tensor:
        """Return the values of all ranks, (size, *values.shape)."""
        raise AssertionError("a subclass says how")


class Alone(Group):
    """This rank by itself, without a process group."""

    size, index = 1, 0

    @override
    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        assert not outgoing and not incoming
        return lambda: []

    @override
    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        return values

    @override
    def all_gather(self, values: Tensor) -> Tensor:
        return values[None]


@dataclass
class Traffic:
    """What messages have cost this rank so far: the bytes that it sent and the seconds that it waited."""

    sent_bytes: int = 0
    wait_seconds: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting."""
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

    @override
    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
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
            messages.clear()  # the tensors that were sent had to live until now
            return [tensor for _, tensor in incoming]

        return wait

    @override
    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        if self.size > 1:
            self._traffic.sent_bytes += values.nbytes
            with self._traffic.waiting():
                dist.all_reduce(values, op, self._group)
        return values

    @override
    def all_gather(self, values: Tensor) -> Tensor:
        if self.size == 1:
            return values[None]
        gathered = values.new_empty(self.size, *values.shape)
        self._traffic.sent_bytes += values.nbytes
        with self._traffic.waiting():
            dist.all_gather(list(gathered.unbind()), values.contiguous(), self._group)
        return gathered


@dataclass
class Imagined(Group):
    """A group of which only this rank exists, on the meta device; it counts the bytes that the rank would send."""

    size: int
    index: int
    sent_bytes: int = 0

    @override
    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        self.sent_bytes += sum(tensor.nbytes for _, tensor in outgoing)
        return lambda: [tensor for _, tensor in incoming]

    @override
    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        return values

    @override
    def all_gather(self, values: Tensor) -> Tensor:
        return values.new_empty(self.size, *values.shape)


@dataclass
class Clock:
    """The clock says which micro-batch the model works on; the key of every random mask contains it."""

    seed: int = 0
    step: int = 0
    micro_batch: int = 0
    """The index of the micro-batch in the global batch, which is the same for all tiles of a group."""


@dataclass(frozen=True)
class Tiles:
    """One rank's place in its tile group.

    Batch statistics of maps that are cut run over the group `norm`, which is the tile group or all ranks of the stage.
    Those of maps that every tile rank holds whole run over `whole_norm`, which is this rank alone or the data axis.
    """

    rows: int
    cols: int
    group: Group
    norm: Group
    whole_norm: Group
    overlap: bool = True
    """Whether a convolution computes its interior while its halo is under way."""
    clock: Clock = field(default_factory=Clock)
    traffic: Traffic = field(default_factory=Traffic)
    remade: Remade = field(default_factory=Remade)
    """The maps that are not kept but made again."""

    @property
    def row(self) -> int:
        """The row of this rank in the grid."""
        return self.group.index // self.cols

    @property
    def col(self) -> int:
        """The column of this rank in the grid."""
        return self.group.index % self.cols

    def send_pieces(
        self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[Piece], like: Tensor
    ) -> Callable[[], list[tuple[Rect, Tensor]]]:
        """Exchange rectangles of a map (N, C, height, width); messages are channels-last in any case.

        `like` gives the events, channels, type and device of the tensors that come in.
        """
        packed = [(peer, tensor.permute(0, 2, 3, 1).contiguous()) for peer, tensor in outgoing]
        events, channels = like.shape[:2]
        empty = [(piece.peer, like.new_empty((events, *piece.rect.shape, channels))) for piece in incoming]
        wait = self.group.exchange(packed, empty)

        def pieces() -> list[tuple[Rect, Tensor]]:
            return [(piece.rect, buffer.permute(0, 3, 1, 2)) for piece, buffer in zip(incoming, wait(), strict=True)]

        return pieces
