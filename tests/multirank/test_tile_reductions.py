"""Every reduction of a tiled map against one device: values, type of the result and gradients, ties included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.layout import Layout
from tests.tile_parity import assert_tiles_agree, image, on_threads

GRIDS = [(3, 2), (1, 3)]
SIZE = (17, 23)


class Calls(nn.Module):
    """A function of the map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x)
        return y if y.ndim else y[None]


def counted(x: Tensor, mask: Tensor) -> Tensor:
    """A masked mean: what counting is for."""
    return (x * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)


FLOATS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum((2, 3)),
    "sum of everything": lambda x: x.sum() + x.mean() * x.sum(dim=(0, 1, 2, 3), keepdim=True).squeeze(),
    "sum of rows": lambda x: x.sum(2),
    "sum of columns, kept": lambda x: torch.sum(x, 3, keepdim=True),
    "mean of channels and columns": lambda x: x.mean((1, 3)),
    "mean by numpy's names": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "mean of the events": lambda x: x.mean((0, 2, 3)),
    "nansum": lambda x: torch.where(x > 1, torch.nan, x).nansum((2, 3)),
    "nanmean": lambda x: torch.where(x > 1, torch.nan, x).nanmean((2, 3)),
    "prod": lambda x: (1 + x / 50).prod(3).prod(2),
    "amax": lambda x: x.amax((2, 3)),
    "amax of everything": lambda x: x.amax() + x.max() * x.min(),
    "amin of rows": lambda x: x.amin(2, keepdim=True),
    "amax of channels, rows and columns": lambda x: x.amax((1, 2, 3)),
    "max of rows and its place": lambda x: x.max(2)[0] + x.max(2).indices,
    "min of columns and its place": lambda x: x.min(dim=3, keepdim=True)[0] - x.min(dim=3, keepdim=True)[1],
    "max of all pixels and its place": lambda x: x.flatten(2).max(-1)[0] + x.flatten(2).max(-1)[1],
    "max of maxima": lambda x: x.max(-1)[0].max(-1)[0],
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "norm": lambda x: torch.norm(x, p=2, dim=(2, 3), keepdim=True),
    "norm of a row": lambda x: x.norm(dim=3),
    "norm of order 1": lambda x: x.norm(1, (2, 3)),
    "norm of order 3": lambda x: torch.linalg.vector_norm(x, 3, (2, 3)),
    "norm of order infinity": lambda x: torch.linalg.vector_norm(x, torch.inf, dim=(2, 3)),
    "var": lambda x: x.var((2, 3)),
    "var, biased": lambda x: x.var((2, 3), False, True),
    "var of everything, biased": lambda x: x.var(unbiased=False),
    "std of rows": lambda x: x.std(dim=2, correction=2),
    "std of a constant": lambda x: (x * 0 + 1).std((2, 3)) + x.mean((2, 3)),
    "std and mean": lambda x: torch.cat(torch.std_mean(x, (2, 3)), 1),
    "var and mean": lambda x: torch.cat(torch.var_mean(x, (2, 3), keepdim=True), 1),
    "softmax of all pixels": lambda x: x.flatten(2).softmax(2),
    "softmax of rows": lambda x: F.softmax(x, 2),
    "log_softmax of columns": lambda x: F.log_softmax(x, dim=-1),
    "softmin of all pixels": lambda x: F.softmin(x.reshape(*x.shape[:2], -1), dim=-1),
    "cells": lambda x: F.adaptive_avg_pool2d(x, (5, 4)),
    "cells of rows": lambda x: F.adaptive_avg_pool2d(x, (8, 1)),
    "cells of columns alone": lambda x: F.adaptive_avg_pool2d(x, (None, 2)),
    "more cells than rows": lambda x: F.adaptive_avg_pool2d(x, (20, 2)),
    "largest of cells": lambda x: F.adaptive_max_pool2d(x, (5, 4)),
    "largest of cells of rows": lambda x: F.adaptive_max_pool2d(x, (8, 1)),
    "largest of more cells than rows": lambda x: F.adaptive_max_pool2d(x, (20, 2)),
    "two reductions of one map": lambda x: x.mean(2) @ x.amax(3).transpose(1, 2).mean(2, keepdim=True).new_ones(23, 1),
}
COUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum of truths": lambda x: (x > 0).sum((2, 3)),
    "sum of truths in a row": lambda x: (x > 0).sum(3),
    "sum of truths in float32": lambda x: (x > 0).sum((2, 3), dtype=torch.float32),
    "sum of integers": lambda x: x.to(torch.int32).sum((2, 3)),
    "sum of bytes in int32": lambda x: (x > 0).to(torch.uint8).sum((2, 3), dtype=torch.int32),
    "mean of truths": lambda x: (x > 0).mean((2, 3), dtype=torch.float64),
    "any": lambda x: (x > 1).any(3),
    "any of rows and columns": lambda x: (x > 2).any(3).any(2),
    "any of bytes": lambda x: (x > 1).to(torch.uint8).any(3),
    "any of everything": lambda x: (x > 2).any(),
    "all": lambda x: (x > -1).all(2, keepdim=True),
    "all of everything": lambda x: torch.all(x > -9),
    "count_nonzero": lambda x: torch.count_nonzero(x > 0, dim=(2, 3)),
    "amax of truths": lambda x: (x > 2).amax((2, 3)),
    "max of integers": lambda x: x.long().amax((2, 3)),
    "sum of half precision": lambda x: x.bfloat16().sum((2, 3)),
    "largest of half precision": lambda x: x.bfloat16().amax((2, 3)),
}
MASKED: dict[str, Callable[[Tensor], Tensor]] = {
    "masked mean": lambda x: counted(x, x > 0),
    "gate by a count": lambda x: x * (x > 0).sum((2, 3), keepdim=True) / 100,
    "gate by a fraction of a row": lambda x: x * (x > 0).mean(3, keepdim=True, dtype=x.dtype),
    "centred by rows": lambda x: x - x.mean(3, keepdim=True) + x.std(2, keepdim=True),
}


def pixels(ties: bool) -> Tensor:
    return image((2, 3, *SIZE)).mul(2).round() if ties else image((2, 3, *SIZE))


@pytest.mark.parametrize("name", [*FLOATS, *MASKED])
def test_reductions_of_maps(name: str) -> None:
    model = Calls((FLOATS | MASKED)[name])
    for grid, ties in zip(GRIDS, (False, True), strict=True):
        assert_tiles_agree(model, pixels(ties), *grid)


@pytest.mark.parametrize("name", COUNTS)
def test_reductions_of_integers_and_truths(name: str) -> None:
    """Such a result has no gradient, so what it has is its numbers and its type."""
    model, x = Calls(COUNTS[name]), pixels(ties=False)
    expected = model(x)
    for rows, cols in GRIDS:
        layout = Layout(rows=rows, cols=cols)
        plan = plan_tiles(model, layout, (3, *SIZE), "never")

        def rank(tiles: Tiles, plan: object = plan) -> Tensor:
            (top, bottom), (left, right) = plan.tile(tiles.row, tiles.col)  # type: ignore[attr-defined]
            return convert(Calls(COUNTS[name]), plan, tiles)(x[:, :, top:bottom, left:right])  # type: ignore[arg-type]

        for y in on_threads(layout, rank):
            assert y.dtype == expected.dtype
            near = torch.finfo(y.dtype).eps if y.is_floating_point() else 0
            torch.testing.assert_close(y, expected, rtol=near, atol=near)
