"""The states of weights that the planner counts, against the resident memory of a real engine."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn

from lartpc_ds.config import ds_config
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.costs.zero import states_of
from lartpc_ds.layout import Layout
from lartpc_ds.training import engine
from tests.ranks import run_ranks

CHANNELS, LAYERS = 1152, 6  # 228 MiB of weights
BESIDE = 0.7  # of them, 160 MiB, for libraries that load late, threads and buffers
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def status_bytes(field: str) -> int:
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def after_a_step(name: str, ranks: int, accumulate: int) -> tuple[float, float, float]:
    """In units of the weights: kept between steps, when the last forward pass is done, and at the most of all."""
    libc = ctypes.CDLL("libc.so.6")
    assert libc.mallopt(_MMAP_THRESHOLD, 1 << 16) and libc.mallopt(_TRIM_THRESHOLD, 1)
    ds = ds_config.read(name)
    del ds["scheduler"]
    batch = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": accumulate}
    ds |= {**batch, "train_batch_size": accumulate * ranks}
    groups, device = engine.start(Layout(data=ranks), 5)
    layers = [nn.Conv2d(CHANNELS if i else 3, CHANNELS, 3, padding=1, bias=False) for i in range(LAYERS)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(CHANNELS, 5))
    whole = 4 * sum(one.numel() for one in model.parameters())
    before = status_bytes("VmRSS") - whole
    trained = engine.Engine(model, ds, groups, device).deepspeed
    images, labels = torch.rand(1, 3, 4, 4), torch.zeros(1, dtype=torch.long)
    forward = 0
    for _ in range(2):
        for _ in range(accumulate):
            loss = nn.functional.cross_entropy(trained(images).float(), labels)
            forward = status_bytes("VmRSS") - before
            trained.backward(loss)
            trained.step()
    kept, most = status_bytes("VmRSS") - before, status_bytes("VmHWM") - before
    engine.finish()
    return kept / whole, forward / whole, most / whole


@pytest.mark.parametrize(("stage", "ranks", "accumulate"), [(0, 1, 1), (1, 2, 2), (2, 2, 1), (3, 2, 1)])
def test_what_an_engine_keeps(stage: int, ranks: int, accumulate: int) -> None:
    name = f"zero{stage}_fp32"
    parameters = CHANNELS * CHANNELS * 9 * (LAYERS - 1)
    candidate = Candidate(Layout(data=ranks), accumulate=accumulate, zero=stage)
    states = states_of(ds_config.read(name), candidate, parameters, host=True)
    whole = 4 * parameters
    gradients = states.gradients_before
    expected = (states.weights + states.optimizer, states.weights + states.optimizer + gradients, states.update)
    for measured in run_ranks(ranks, after_a_step, name, ranks, accumulate):
        for what, size, predicted in zip(("kept", "forward", "most"), measured, expected, strict=True):
            if (stage, what) == (3, "kept"):
                # what was gathered for the passes is given back after them, and room for gradients stays
                predicted += gradients - (whole if ranks > 1 else 0)
            assert -0.1 <= size - predicted / whole <= BESIDE, (what, size, predicted / whole)
