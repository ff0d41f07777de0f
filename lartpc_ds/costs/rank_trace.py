"""What one rank does in a step, watched on tensors without memory: bytes that are alive, seconds by a machine's rates.

The real converted model runs, its levers included, under torch's fake tensors; torch's MemTracker adds up what is alive
and of what kind, to which each operator's scratch is added while it runs, and its time by the roofline. Messages to
other ranks are met by a group that exists only here: it answers at once, and knows when a real one would have answered.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from lartpc_ds.costs.hardware import Hardware, Rates
from lartpc_ds.costs.roofline import all_gather_seconds, all_reduce_seconds, operator_work, send_seconds
from lartpc_ds.exact.grid.pieces import works_in_pieces
from lartpc_ds.exact.grid.tiles import Group, Wait

__all__ = ["ImaginedPeers", "Peak", "RankTrace"]


@dataclass(frozen=True)
class Peak:
    """Bytes of a rank when it has most."""

    tensors: dict[str, int]
    """By kind, as MemTracker names them."""
    scratch: int = 0
    halos: int = 0

    @property
    def total(self) -> int:
        """Tensors, of which the halos are a part, and scratch."""
        return self.tensors.get("Total", 0) + self.scratch

    @property
    def gradients(self) -> int:
        """Of weights."""
        return self.tensors.get("Gradient", 0)

    @property
    def buffers(self) -> int:
        """Of the network."""
        return self.tensors.get("Buffer", 0)

    @property
    def activations(self) -> int:
        """All else but the weights: maps that are kept, maps at hand and their gradients."""
        return self.tensors.get("Total", 0) - self.tensors.get("Parameter", 0) - self.gradients - self.buffers


class RankTrace(MemTracker):  # type: ignore[no-untyped-call]
    """Enter it inside a FakeTensorMode; `seconds` and `peak` grow with every operator."""

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.seconds = 0.0
        self.peak = Peak({})
        self.rates = rates
        self._halos: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def note_halo(self, tensor: Tensor) -> None:
        """A buffer of a message: counted as long as it is alive, unless it is a part of a map."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == tensor.nbytes:
            self._halos.add(storage)

    def _update_peak_stats(self, peak_state: Any) -> None:
        """MemTracker would keep a peak of each module, too, which takes a third of the time."""

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        """MemTracker takes a second micro-batch for a mistake; here it is one more call of a module that is known."""
        if module not in self.memory_tracking or self._mod_tracker.is_bw:
            super()._pre_fw_hook(module, inputs)
        else:
            self._track_inputs_or_outputs(inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, then look what is alive while its kernel runs."""
        if func is torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))  # half of all calls, and none of them works
        result = super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        work = operator_work(func, args, kwargs or {}, result, self.rates, in_pieces=works_in_pieces())
        self.seconds += work.seconds
        alive: dict[str, int] = next(iter(self._curr_mem_snap.values()), {})
        if alive.get("Total", 0) + work.scratch_bytes > self.peak.total:
            halos = sum(storage.nbytes() for storage in self._halos)
            named = {getattr(kind, "value", kind): size for kind, size in alive.items()}
            self.peak = Peak(named, work.scratch_bytes, halos)
        return result


class ImaginedPeers(Group):
    """The other tiles of a rank's event, which exist in name only.

    Counts what the rank would wait for them beyond what it computes while messages travel.
    """

    def __init__(self, size: int, index: int, hardware: Hardware, ranks_per_node: int, trace: RankTrace) -> None:
        self.size, self.index = size, index
        self.trace = trace
        self._exposed_seconds = 0.0
        self._hardware, self._ranks_per_node = hardware, ranks_per_node

    def of_size(self, size: int) -> "ImaginedPeers":
        """Others, among which this rank is the first."""
        return ImaginedPeers(size, 0, self._hardware, self._ranks_per_node, self.trace)

    def take_exposed_seconds(self) -> float:
        """What the rank waited since it was asked last."""
        taken, self._exposed_seconds = self._exposed_seconds, 0.0
        return taken

    def exchange(self, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[tuple[int, Tensor]]) -> Wait:
        """As in the base class."""
        for _, tensor in (*outgoing, *incoming):
            self.trace.note_halo(tensor)
        travel = max(self._seconds(outgoing), self._seconds(incoming))
        started, waited = self.trace.seconds, False

        def wait() -> list[Tensor]:
            nonlocal waited
            hidden = self.trace.seconds - started if self._hardware.overlaps else 0.0
            if not waited:
                self._exposed_seconds += max(travel - hidden, 0.0)
            waited = True
            return [tensor for _, tensor in incoming]

        return wait

    def _seconds(self, messages: Sequence[tuple[int, Tensor]]) -> float:
        links = self._hardware.within if self.size <= self._ranks_per_node else self._hardware.across
        return sum(send_seconds(tensor.nbytes, links) for _, tensor in messages)

    def all_reduce(self, values: Tensor, op: "dist.ReduceOp.RedOpType" = dist.ReduceOp.SUM) -> Tensor:
        """As in the base class."""
        if self.size > 1:
            links = self._hardware.within, self._hardware.across
            self._exposed_seconds += all_reduce_seconds(values.nbytes, self.size, *links, self._ranks_per_node)
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """As in the base class."""
        if self.size > 1:
            links = self._hardware.within, self._hardware.across
            size = values.nbytes * self.size
            self._exposed_seconds += all_gather_seconds(size, self.size, *links, self._ranks_per_node)
        return values.new_empty(self.size, *values.shape)
