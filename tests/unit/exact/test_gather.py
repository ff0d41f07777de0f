"""`layout.gather_at`: from a block on, every rank runs the whole map."""

import pytest
import torch
from torch import nn

from lartpc_ds.models.build import build_model
from tests.tile_parity import assert_tiles_agree, image


def model() -> nn.Module:
    torch.manual_seed(1)
    return build_model("resnet18", planes=2, num_classes=3, width=4).double()


@pytest.mark.parametrize("block", ["layer2_0", "layer4_1", "head"])
def test_a_named_block_runs_whole(block: str) -> None:
    plan = assert_tiles_agree(model(), image((2, 2, 65, 97)), 2, 1, block)
    assert list(plan.gathered_at) == [block] and plan.output is None


def test_auto_gathers_before_tiles_get_thin() -> None:
    plan = assert_tiles_agree(model(), image((2, 2, 65, 97)), 2, 1, "auto")
    assert len(plan.gathered_at) == 1
