"""Only what charge has reached is computed; the rest of every map is one number per channel, and is held once.

An event has some 10^8 pixels, of which a few thousand hold charge. A convolution of zeros is zero, a norm of a constant
is a constant and so is what an activation makes of it, so away from charge every map is constant, but for a few
patterns near the edges of the image. A map is held as its distinct patches (`grid.patches`), and the unchanged network
runs on them (`memory.lit`). At a block where that no longer pays, the map is put together again, and the rest of the
network runs on it. Numbers and gradients are those of a plain run, batch statistics included, because the patches are
equal whatever the weights are. Rejected: sparse convolutions, which are another network, and skipping dark patches,
which changes every norm.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MethodType

import numpy as np
import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.cuts import Run
from lartpc_ds.exact.grid.patches import Bits, Patches
from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.kernels.host_memory import give_back, keep_few_kernels
from lartpc_ds.exact.kernels.patches import repeat_edges
from lartpc_ds.exact.memory.lit import Lit, Where
from lartpc_ds.exact.memory.lit_plan import LitPlan
from lartpc_ds.exact.memory.spare import Spare
from lartpc_ds.exact.trace.modules import wrap
from lartpc_ds.models.build import blocks

__all__ = ["RunBlocks", "light", "lit_pixels"]

RunBlocks = Callable[[Sequence[tuple[str, nn.Module]], Tensor], Tensor]
"""A function that runs named blocks, of which the first takes images."""


def light(
    model: nn.Module,
    plan: LitPlan,
    tiles: Tiles,
    lean: Mapping[Where, Run] | None = None,
    spare: Spare | None = None,
) -> RunBlocks:
    """Let `model` compute only what is lit, as `plan` (from `plan_lit`) says; changes `model`.

    Its images may be sparse. Apply it before `spatialize.convert` and before recomputation.

    Args:
        model: the model that was planned.
        plan: which blocks may run on patches.
        tiles: the groups over which batch statistics run.
        lean: what runs in place of norms together with the ReLU after them, by (module, function); `convert` must have
            been told of lean norms.
        spare: what is told, in training, how much of each micro-batch is kept.

    Returns:
        What the model runs its blocks with from now on; a pipeline stage runs the first of them with it.
    """
    keep_few_kernels()
    lit, in_pieces = Lit(tiles, lean), False
    for name, module in model.named_modules():
        if module is not model:
            wrap(name, module, lit.around)

    def run(sequence: Sequence[tuple[str, nn.Module]], images: Tensor, pixels: Bits | None = None) -> Tensor:
        # a trace gives the lit pixels, because its images have no values
        if tuple(images.shape[2:]) != (plan.rows.size, plan.cols.size):
            raise ValueError(
                f"images: they must have {plan.rows.size} rows and {plan.cols.size} columns; they are "
                f"{tuple(images.shape)}"
            )
        nonlocal in_pieces
        if in_pieces:
            give_back()  # what the event before has left
        images = images.coalesce() if images.is_sparse else images  # at once, if its pixels are in order
        pixels = lit_pixels(images) if pixels is None else pixels
        if spare is not None and torch.is_grad_enabled():
            spare.look(_kept_bytes(plan, pixels, images.device), images.device)
        until = plan.until_of(pixels)
        in_pieces = images.device.type == "cpu" and until != sequence[0][0]  # whole maps leave room for whole maps
        if until == sequence[0][0]:
            whole = images.permute(0, 2, 3, 1).to_dense().permute(0, 3, 1, 2) if images.is_sparse else images
            return lit.run(sequence, whole.contiguous(memory_format=torch.channels_last), None, None)
        patches = Patches(pixels, plan.rows, plan.cols)
        x = cut(images, patches)
        del images
        return lit.run(sequence, x, patches, until)

    model.forward = MethodType(lambda self, images, pixels=None: run(blocks(self), images, pixels), model)
    return run


def _kept_bytes(plan: LitPlan, pixels: Bits, device: torch.device) -> float:
    """What the events with these lit pixels keep for the backward pass, in the precision that is switched on."""
    low = torch.is_autocast_enabled(device.type)
    itemsize = (torch.get_autocast_dtype(device.type) if low else torch.float32).itemsize
    return len(pixels) * plan.kept_bytes(plan.shares(pixels)) * itemsize / torch.float32.itemsize


def lit_pixels(images: Tensor) -> Bits:
    """(events, channels, rows, columns) -> (events, rows, columns): whether a pixel is not 0 in some channel.

    Sparse images are never made dense, and all pixels that they name count.
    """
    if not images.is_sparse:
        return (images.detach() != 0).any(1).cpu().numpy()
    event, _, row, col = images._indices().cpu().numpy()
    lit = np.zeros((len(images), *images.shape[2:]), np.bool_)
    lit[event, row, col] = True
    return lit


def cut(images: Tensor, patches: Patches) -> Tensor:
    """Return the distinct patches of images (events, channels, rows, columns), which may be sparse."""
    rows, cols = patches.rows, patches.cols
    if images.is_sparse:
        return _cut_sparse(images, patches)
    # a patch that sticks out repeats the last row or column there, which nobody reads
    row, col = (
        torch.from_numpy(np.minimum(at[:, None] * axis.patch + np.arange(axis.patch), axis.size - 1))
        for at, axis in ((patches.row, rows), (patches.col, cols))
    )
    at = torch.from_numpy(patches.event)[:, None, None], row[:, :, None], col[:, None, :]
    pixels = images.permute(0, 2, 3, 1)[tuple(index.to(images.device) for index in at)]
    return pixels.permute(0, 3, 1, 2)


def _cut_sparse(images: Tensor, patches: Patches) -> Tensor:
    rows, cols = patches.rows, patches.cols
    values = images.values()
    event, channel, row, col = images.indices().cpu().numpy()
    patch = patches.index[event, row // rows.patch, col // cols.patch]
    pixel = (patch * rows.patch + row % rows.patch) * cols.patch + col % cols.patch
    channels = images.shape[1]
    flat = values.new_zeros(len(patches) * rows.patch * cols.patch * channels)
    flat[torch.from_numpy(pixel * channels + channel).to(values.device)] = values
    x = flat.view(len(patches), rows.patch, cols.patch, channels).permute(0, 3, 1, 2)
    return repeat_edges(x, patches)
