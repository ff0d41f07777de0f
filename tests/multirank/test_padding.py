"""What a checkpoint of ZeRO-3 keeps depends on the run alone: no memory that nobody wrote, which is NaN here."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.config import ds_config
from lartpc_ds.layout import Layout
from lartpc_ds.training import engine
from tests.ranks import run_ranks

RANKS = 3


def kept() -> tuple[list[bool], float]:
    """Is all finite in each of the optimizer's flat groups of fp32 weights, and what is the last of the last group?"""
    ds = ds_config.read("zero3_fp32")
    del ds["scheduler"]
    ds |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": RANKS}
    groups, device = engine.start(Layout(data=RANKS), 5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(36, 5))  # biases of 4 and 5 in parts of 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", unwritten)
        trainer = engine.Engine(model, ds, groups, device)
    trainer.step([(torch.rand(1, 1, 5, 5), torch.tensor([2]))])
    flat = trainer.deepspeed.optimizer.fp32_partitioned_groups_flat
    found = [bool(one.isfinite().all()) for one in flat], float(flat[-1][-1])
    engine.finish()
    return found


def unwritten(*args: Any, empty: Any = torch.empty, **options: Any) -> Tensor:
    memory: Tensor = empty(*args, **options)
    return memory.fill_(float("nan")) if memory.is_floating_point() else memory


def test_the_padding_of_weights_is_zero() -> None:
    *_, (finite, last) = run_ranks(RANKS, kept)
    assert all(finite)
    assert last == 0
