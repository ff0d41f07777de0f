import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lartpc_ds.config import ds_config
from lartpc_ds.config.ds_config import DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.training.prepare import (
    Job,
    absolute_paths,
    class_weights,
    job_lit,
    lit_before,
    make_job,
    make_model,
    max_steps,
    with_files,
)
from lartpc_ds.training.sources import image_shape, index_events, open_events, open_source
from tests.small_runs import random_event, write_events

EVENTS = 12
DS = ds_config.read("zero2_fp32")


@pytest.fixture(scope="module")
def event_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("prepare") / "events.h5", EVENTS)


def config(path: Path | str, **sections: Any) -> RunConfig:
    data = {
        "files": [str(path)],
        "classes": ["electron", "gamma", "muon"],
        "split": {"train": 0.5, "validation": 0.5},
        **sections.pop("data", {}),
    }
    model = {"width": 4, **sections.pop("model", {})}
    train = {"max_steps": 5, **sections.pop("train", {})}
    return RunConfig.parse({"data": data, "model": model, "train": train, **sections}, "test")


def job_of(run: RunConfig, layout: Layout = Layout(), ds: DeepSpeedConfig = DS) -> Job:  # noqa: B008  # frozen
    source = open_source(run)
    return make_job(run, ds, layout, source, index_events(run, source))


def test_a_job_says_what_the_ranks_need(event_file: Path) -> None:
    run = config(event_file)
    job = job_of(run, Layout(data=2))
    parameters = sum(parameter.numel() for parameter in make_model(run, 2, 3).parameters())
    assert job == Job(Layout(data=2), 5, 2, (33, 49), ("electron", "gamma", "muon"), parameters)
    assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job


def test_preparing_leaves_the_random_state_alone(event_file: Path) -> None:
    before = torch.random.get_rng_state()
    job_of(config(event_file))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("train", "data_ranks", "expected"),
    [
        ({"max_steps": 7}, 1, 7),
        ({"max_steps": None, "epochs": 1.0}, 1, 34),  # ceil(100 / 3)
        ({"max_steps": None, "epochs": 1.0}, 4, 9),  # ceil(100 / 12)
        ({"max_steps": None, "epochs": 2.5, "accumulate": 5}, 1, 17),  # ceil(250 / 15)
        ({"max_steps": None, "epochs": 0.001}, 1, 1),
        ({"max_steps": 10, "epochs": 1.0}, 1, 10),
        ({"max_steps": 1000, "epochs": 1.0}, 1, 34),
    ],
)
def test_the_length_that_ends_first_counts(train: dict[str, Any], data_ranks: int, expected: int) -> None:
    run = config("a.h5", data={"batch": 3}, train=train)
    assert max_steps(run, Layout(data=data_ranks, rows=2), 100) == expected, "tiles see the same events"


def test_the_image_is_the_detectors_or_the_largest_plane(tmp_path: Path, event_file: Path) -> None:
    assert image_shape(config(event_file), open_events(config(event_file))) == (33, 49)
    run = config(event_file, data={"detector": "argoneut"})
    assert image_shape(run, open_events(run)) == (240, 2048)
    with Larcv3Writer(tmp_path / "large.h5") as writer:
        for index in range(3):
            writer.write(random_event(index, ((241, 49), (33, 50))))
    run = config(tmp_path / "large.h5", data={"detector": "argoneut"})
    with pytest.raises(UserError, match=r"data\.detector = 'argoneut'.*240 wires x 2048 ticks.*241 x 50.*auto"):
        image_shape(run, open_events(run))


def test_a_class_without_events_is_refused(event_file: Path) -> None:
    run = config(event_file, data={"classes": ["electron", "kaon"]})
    with pytest.raises(UserError, match=r"data\.classes.*kaon"):
        index_events(run, open_source(run))


def test_an_empty_split_of_non_zero_share_is_refused(event_file: Path) -> None:
    run = config(event_file, data={"split": {"train": 0.999, "validation": 0.001}})
    with pytest.raises(UserError, match=r"data\.split\.validation = 0\.001 got none of 12 events"):
        index_events(run, open_source(run))


def test_every_event_has_a_label_and_a_part(event_file: Path) -> None:
    run = config(event_file)
    index = index_events(run, open_source(run))
    assert index.label.tolist() == [number % 3 for number in range(EVENTS)]
    parts = np.concatenate([index.positions(split) for split in ("train", "validation")])
    assert sorted(parts.tolist()) == list(range(EVENTS))


class WrongScores(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(1, 2))


class TwoPlaneFilter(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(5, 3, 1)


class NoTensor(nn.Module):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("wrong_scores", r"must give scores of shape \(2, 3\) \(events, classes\), but gives \(2, 49\)"),
        ("no_tensor", r"must give scores of shape \(2, 3\).*gives list"),
        ("wrong_planes", r"cannot take images of \(2, 2, 33, 49\) \(events, planes, wires, ticks\): .*channel"),
    ],
)
def test_a_users_model_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, event_file: Path, target: str, message: str
) -> None:
    module = ModuleType("my_nets_for_test")
    vars(module).update(
        wrong_scores=lambda planes, num_classes: WrongScores(),
        no_tensor=lambda planes, num_classes: NoTensor(),
        wrong_planes=lambda planes, num_classes: TwoPlaneFilter(),
    )
    monkeypatch.setitem(sys.modules, "my_nets_for_test", module)
    path = f"my_nets_for_test:{target}"
    run = config(event_file, data={"batch": 2}, model={"width": None, "target": path})
    with pytest.raises(UserError, match=f"model {path}: {message}"):
        job_of(run)


def index_of(labels: list[int], splits: list[str]) -> EventIndex:
    ids = tuple(random_event(number).id for number in range(len(labels)))
    return EventIndex(ids, np.array(labels), np.array(splits), ("a", "b", "c"))


def test_balanced_weights_have_mean_one_over_the_training_events() -> None:
    index = index_of([0, 0, 0, 1, 2, 2, 1, 1], ["train"] * 6 + ["validation"] * 2)
    assert class_weights(config("a.h5"), index) is None
    weights = class_weights(config("a.h5", train={"class_weights": "balanced"}), index)
    assert weights is not None and weights.dtype == torch.float32
    # 6 training events in 3 classes: 3, 1 and 2 of them
    torch.testing.assert_close(weights, torch.tensor([6 / 9, 6 / 3, 6 / 6]))
    torch.testing.assert_close(weights[torch.tensor([0, 0, 0, 1, 2, 2])].mean(), torch.tensor(1.0))


def test_a_class_that_nobody_trains_on_has_a_finite_weight() -> None:
    index = index_of([0, 0, 1, 2], ["train"] * 3 + ["validation"])
    weights = class_weights(config("a.h5", train={"class_weights": "balanced"}), index)
    assert weights is not None and bool(torch.isfinite(weights).all())
    torch.testing.assert_close(weights[:2], torch.tensor([3 / 4, 3 / 2]))


def test_patterns_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/physicist")
    run = with_files(config("x"), ("events/*.h5", "../a.h5", "/data/b.h5", "~/c.h5"))
    found = absolute_paths(run, Path("/runs/mine")).data.files
    assert found == ("/runs/mine/events/*.h5", "/runs/a.h5", "/data/b.h5", "/home/physicist/c.h5")
    assert absolute_paths(run, Path("/runs/mine")).model == run.model
    assert run.data.files[0] == "events/*.h5"


@pytest.mark.parametrize("until", ["auto", "layer2_0", "layer2_1", "never"])
def test_what_is_lit_lies_in_the_first_stage(event_file: Path, until: str) -> None:
    zero1, layout = ds_config.read("zero1_fp32"), Layout(pipe=2)
    run = config(event_file, memory={"lit_block": 32, "lit_until": until}, layout={"pipe": 2, "cuts": ["layer2_0"]})
    if until in ("auto", "layer2_0"):
        plans = lit_before(run, zero1, layout, open_source(run)), job_lit(run, job_of(run, layout, zero1))
        assert [None if plan is None else plan.covered for plan in plans] == [4, 4]
        return
    allowed = r"set memory\.lit_until to one of auto, pool, layer1_0, layer1_1, layer2_0, or "
    fix = r"name in layout\.cuts .* begins at layer2_1 or later" if until == "layer2_1" else r"set layout\.pipe = 1$"
    told = rf"memory\.lit_until = '{until}' with layout\.pipe = 2: .* second begins at layer2_0; {allowed}{fix}"
    with pytest.raises(UserError, match=told):
        lit_before(run, zero1, layout, open_source(run))
