"""The peak memory of a training step, from a run of the real model on tensors without memory.

torch's fake tensors go through the forward, the backward and the optimizer, our own autograd functions included, and
its MemTracker adds up what is alive: no table of layer sizes to keep true. What the kernels take for themselves while
they run is not seen; on CPU that is up to four times the largest map of a convolution whose weight gradient is due.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from lartpc_ds.exact.trace.dry_run import ReadableConstants

__all__ = ["traced_peak_bytes"]


def traced_peak_bytes(
    make_model: Callable[[], nn.Module],
    prepare: Callable[[nn.Module], None],
    images: tuple[int, ...],
    precision: torch.dtype | None,
) -> int:
    """Of a step on images (events, channels, rows, columns): weights, their gradients, AdamW's states, activations.

    Args:
        make_model: makes the network; called where its weights take no memory.
        prepare: applies levers to it.
        images: the shape of a micro-batch; the images are on the device before the step.
        precision: of torch.autocast; None for float32 throughout.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), ReadableConstants():
        model = make_model().train()
        prepare(model)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # the optimizer has no states before its first step
        optimizer.zero_grad()
        x = torch.empty(images).contiguous(memory_format=torch.channels_last)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, x)
        with tracker:
            with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
                scores = model(x)
            torch.autograd.backward(scores.float().logsumexp(1).sum())
            optimizer.step()
        device = next(iter(tracker.get_tracker_snapshot("peak").values()))
        return int(device["Total"])
