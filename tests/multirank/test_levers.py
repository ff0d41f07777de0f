"""Recomputation and lean norms, alone, together and on tiles: the numbers of one device without any lever."""

import pytest
import torch
from torch import nn

from lartpc_ds.models.build import build_model
from tests.tile_parity import assert_tiles_agree, image

GRIDS = [(1, 1), (2, 1), (2, 2)]
LEVERS = [(True, False), (False, True), (True, True)]
"""Lean norms, recomputation."""
NETWORKS = [("resnet18", "batch"), ("resnet18", "group"), ("resnet18", "layer"), ("resnet50", "batch")]


def _model(name: str, norm: str) -> nn.Module:
    torch.manual_seed(3)
    # one plane and 16 channels: the stem's map is four times its image, so that it is made again
    model = build_model(name, planes=1, num_classes=4, width=16, norm=norm).double()
    for parameter in model.parameters():  # norms that start at 1 and 0 would hide a wrong weight
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.3, 0.5)
    return model


@pytest.mark.parametrize(
    ("network", "levers", "grid"),
    # every network with every lever, every lever on every grid, and every network on every grid
    [(name, lever, GRIDS[(n + m) % 3]) for n, name in enumerate(NETWORKS) for m, lever in enumerate(LEVERS)],
)
def test_levers_change_no_number(network: tuple[str, str], levers: tuple[bool, bool], grid: tuple[int, int]) -> None:
    (name, norm), (lean_norm, recomputed), (rows, cols) = network, levers, grid
    x = image((2, 1, 77, 71))
    plan = assert_tiles_agree(_model(name, norm), x, rows, cols, "auto", lean_norm=lean_norm, recomputed=recomputed)
    assert plan.remade_at == (["stem.0"] if lean_norm else [])
