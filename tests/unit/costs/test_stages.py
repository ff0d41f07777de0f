"""What a run's stages are and what they refuse."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.config import ds_config
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.cuts import stage_bytes
from lartpc_ds.costs.stages import block_costs, check_zero, plan_stages, stage_shares
from lartpc_ds.errors import UserError
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Bounds, Layout
from lartpc_ds.models.build import blocks, build_model
from tests.machine import rates
from tests.unet import UNet

IMAGE = (3, 64, 96)
ZERO1 = ds_config.read("zero1_fp32")


def config(grid: Layout, **sections: Any) -> RunConfig:
    axes = {"pipe": grid.pipe, "rows": grid.rows, **sections.pop("layout", {})}
    return RunConfig.parse({"layout": axes, "train": {"max_steps": 1, "accumulate": 4}, **sections}, "test")


def planned(model: nn.Module, grid: Layout, **sections: Any) -> Bounds:
    model = model.to("meta")
    plan = plan_tiles(model, grid, IMAGE)
    return plan_stages(config(grid, **sections), ZERO1, grid, model, IMAGE, plan, rates())


def resnet() -> nn.Module:
    with torch.device("meta"):
        return build_model("resnet18", planes=3, num_classes=4, width=8)


def test_no_stages_ask_for_no_blocks() -> None:
    assert planned(nn.Conv2d(3, 4, 3), Layout()) == ()


def test_the_cut_is_what_the_configuration_says() -> None:
    assert planned(resnet(), Layout(2), layout={"cuts": ["layer3_1"]}) == (0, 7, 11)
    assert planned(resnet(), Layout(2), layout={"cuts": "uniform"}) == (0, 5, 11)
    start, first, stop = planned(resnet(), Layout(2))
    assert (start, stop) == (0, 11) and 0 < first < planned(resnet(), Layout(2), layout={"cuts": "parameters"})[1]


class Shared(nn.Module):
    """One block twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [("first", self.first), ("once", self.body), ("twice", self.body), ("head", self.head)]

    def forward(self, x: Tensor) -> Tensor:
        for _, block in self.blocks():
            x = block(x)
        return x


def test_shared_weights_stay_in_one_stage() -> None:
    assert planned(Shared(), Layout(2), layout={"cuts": ["once"]}) == (0, 1, 4)
    with pytest.raises(UserError, match="blocks once and twice share weights but are in stages 0 and 1"):
        planned(Shared(), Layout(2), layout={"cuts": ["twice"]})


class Outside(nn.Module):
    """Pools between its blocks, which its blocks() knows by a module of its own."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.max_pool2d(x, 2)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [("first", self.first), ("pool", self.Pool()), ("second", self.second)]

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first(x), 2)
        scores: Tensor = self.second(x)
        return scores


def test_what_tiles_need_must_be_in_a_block() -> None:
    assert len(planned(Outside(), Layout(2))) == 3
    with pytest.raises(UserError, match=r"test_stages\.py.*max_pool2d is made outside of the model's blocks"):
        planned(Outside(), Layout(2, rows=2))


def test_a_share_is_of_one_tile_and_recomputation_keeps_inputs_only() -> None:
    model = resnet()
    whole, half = (
        block_costs(config(one), ZERO1, one, model, IMAGE, rates()) for one in (Layout(2), Layout(2, rows=2))
    )
    assert [one.saved_bytes for one in half] == [one.saved_bytes // 2 for one in whole]
    assert [one.parameters for one in half] == [one.parameters for one in whole]
    again = block_costs(config(Layout(2), memory={"recompute": "block"}), ZERO1, Layout(2), model, IMAGE, rates())
    assert [one.saved_bytes for one in again] == [one.input_bytes for one in whole]
    assert stage_bytes(again, 0, 5, 2) < stage_bytes(whole, 0, 5, 2)


def test_shares_of_time_add_up() -> None:
    costs = block_costs(config(Layout(2)), ZERO1, Layout(2), resnet(), IMAGE, rates())
    shares = stage_shares(costs, (0, 4, 9, 11), 2)
    assert [(one.first, one.last, one.blocks) for one in shares] == [
        ("stem", "layer1_1", 4),
        ("layer2_0", "layer4_0", 5),
        ("layer4_1", "head", 2),
    ]
    assert [one.copies for one in shares] == [2, 2, 1]
    assert sum(one.time for one in shares) == pytest.approx(1)


def test_the_optimizer_counts() -> None:
    """AdamW: two maps beside weight and gradient; ZeRO-1 shares them, and a copy of the weights, over the stage."""
    model = resnet()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trees = {stage: ds_config.read(f"zero{stage}_fp32") for stage in (0, 1)}
    sgd = copy.deepcopy(trees[0])
    sgd["optimizer"] = {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}
    for tree, layout, expected in (
        (trees[0], Layout(2), 16),
        (trees[1], Layout(2, data=2), 14),
        (trees[1], Layout(2, data=2, rows=2), 11),
        (sgd, Layout(2), 12),
    ):
        costs = block_costs(config(layout), tree, layout, model, IMAGE, rates())
        assert sum(one.state_bytes for one in costs) == expected * parameters


def test_zero_2_and_3_do_not_go_with_stages() -> None:
    for name, stage in (("zero2_bf16", 2), ("zero3_offload_fp32", 3)):
        with pytest.raises(UserError, match=rf"ZeRO-{stage} does not go.*--set ds\.zero_optimization\.stage=1"):
            check_zero(config(Layout(2)), ds_config.read(name), Layout(2))
    offloaded = copy.deepcopy(ZERO1)
    offloaded["zero_optimization"]["offload_param"] = {"device": "cpu"}
    with pytest.raises(UserError, match=r"offload_param needs ZeRO-3.*zero2_offload_bf16"):
        check_zero(config(Layout(2)), offloaded, Layout(2))


def test_ranks_that_decide_what_they_recompute_do_not_go_with_zero_3() -> None:
    run = config(Layout(), memory={"lit_block": 32, "recompute": "auto"})
    check_zero(run, ds_config.read("zero2_bf16"), Layout())
    with pytest.raises(UserError, match=r"memory\.recompute = 'auto'.*--set ds\.zero_optimization\.stage=2"):
        check_zero(run, ds_config.read("zero3_bf16"), Layout())


def test_a_model_without_blocks() -> None:
    with pytest.raises(UserError, match=r"UNet has no blocks\(\).*layout\.pipe > 1"):
        planned(UNet(3, 4), Layout(2))


def test_half_precision_needs_one_loss_scale() -> None:
    run = config(Layout(2))
    check_zero(run, ds_config.read("zero1_fp16"), Layout(2))
    check_zero(run, ds_config.read("zero3_fp16"), Layout())
    check_zero(run, ds_config.read("zero0_fp16"), Layout(2))  # the stages share one loss scale


@pytest.mark.slow
def test_every_network_of_ours_can_be_cut() -> None:
    for name, planes in (("resnet34", "stacked"), ("resnet50", "towers"), ("convnext", "towers")):
        with torch.device("meta"):
            model = build_model(name, planes=3, num_classes=4, width=8, plane_mode=planes)
        bounds = planned(model, Layout(4))
        assert len(bounds) == 5 and bounds[-1] == len(blocks(model))
