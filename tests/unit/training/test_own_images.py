"""A run on a user's own images, as far as it is decided before a process starts."""

import copy
import io
from typing import Any

import pytest
import torch
from rich.console import Console

from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.tiles import Imagined, Tiles
from lartpc_ds.exact.spatialize import convert, plan_tiles
from lartpc_ds.jobs.overview import print_overview
from lartpc_ds.jobs.resolve import ResolvedRun
from lartpc_ds.jobs.site import here
from lartpc_ds.layout import Layout
from lartpc_ds.training.prepare import Job, class_weights, make_job, make_loss, make_model, plan_of
from lartpc_ds.training.sources import augmentation, index_events, open_source, reopen_source
from tests.own_images import COLS, ROWS, Dense, Labelled, Pooled, Spectrum

DS = {
    "zero_optimization": {"stage": 2},
    "zero_force_ds_cpu_optimizer": False,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    "torch_autocast": {"enabled": False},
}


def config(images: str, model: str, **sections: Any) -> RunConfig:
    data = {
        "target": f"tests.own_images:{images}",
        "split": {"train": 0.5, "validation": 0.5},
        **sections.pop("data", {}),
    }
    train = {"max_steps": 5, **sections.pop("train", {})}
    tree = {"data": data, "model": {"target": f"tests.own_images:{model}"}, "train": train, **sections}
    return RunConfig.parse(tree, "test")


def job_of(run: RunConfig, layout: Layout = Layout()) -> Job:  # noqa: B008  # frozen
    source = open_source(run)
    return make_job(run, DS, layout, source, index_events(run, source))


@pytest.mark.parametrize(
    ("images", "model", "train", "task"),
    [
        ("Dense", "unet", {}, "pixels"),
        ("Labelled", "Pooled", {"class_weights": "balanced"}, "events"),
        ("Own", "unet", {"loss_target": "tests.own_images:squares"}, "own"),
    ],
)
def test_a_job_says_what_the_ranks_need(images: str, model: str, train: dict[str, Any], task: str) -> None:
    run = config(images, model, train=train)
    job = job_of(run, Layout(rows=2))
    parameters = sum(parameter.numel() for parameter in make_model(run, 2, 3).parameters())
    assert job == Job(Layout(rows=2), 5, 2, (ROWS, COLS), Dense.classes, parameters, task)
    assert Job.from_dict(job.as_dict()) == job
    source = open_source(run)
    index = index_events(run, source)
    again = reopen_source(run, index, job.image_shape, job.task)
    assert (again.task, again.image_shape, len(again)) == (task, source.image_shape, 12)


def test_a_job_of_before_is_one_of_events() -> None:
    tree = job_of(config("Labelled", "Pooled")).as_dict()
    del tree["task"]
    assert Job.from_dict(tree).task == "events"


def test_splits_go_by_name_and_index() -> None:
    run = config("Dense", "unet")
    index, again = (index_events(one, open_source(one)) for one in (run, config("Dense", "unet", data={"seed": 0})))
    assert index.split.tolist() == again.split.tolist() and set(index.split) == {"train", "validation"}
    other = config("Dense", "unet", data={"seed": 4})
    assert index_events(other, open_source(other)).split.tolist() != index.split.tolist()


def test_labels_are_split_counted_and_weighed_as_events_are() -> None:
    run = config("Labelled", "Pooled", train={"class_weights": "balanced"})
    index = index_events(run, open_source(run))
    assert index.label.tolist() == list(Labelled.labels)
    weights = class_weights(run, index)
    assert weights is not None
    assert float(weights[index.label[index.positions("train")]].mean()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("images", "model", "sections", "message"),
    [
        (
            "Dense",
            "Pooled",
            {},
            r"shape \(1, 3, 40, 56\) \(events, classes, rows, columns\), but gives \(1, 3\);.*labels",
        ),
        (
            "Labelled",
            "unet",
            {},
            r"shape \(1, 3\) \(events, classes\), but gives \(1, 3, 40, 56\);.*without labels",
        ),
        ("Own", "unet", {}, r"targets are float64 of \(32, 32\).*train\.loss_target"),
        ("Dense", "unet", {"train": {"class_weights": "balanced"}}, r"train\.class_weights.*no labels.*loss_target"),
        ("Dense", "unet", {"data": {"shift": [40, 0]}}, r"data\.shift = \[40, 0\]: the image has 40 rows"),
        (
            "Own",
            "unet",
            {"data": {"flip": True}, "train": {"loss_target": "tests.own_images:squares"}},
            r"data\.flip and data\.shift.*remove both",
        ),
        ("Dense", "unet", {"train": {"loss_target": "tests.own_images:absent"}}, r"train\.loss_target.*no such name"),
        ("absent", "unet", {}, r"data\.target = 'tests.own_images:absent'.*no such name"),
    ],
)
def test_what_does_not_fit_is_named(images: str, model: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        job_of(config(images, model, **sections))


def test_on_one_device_a_network_may_use_any_operator() -> None:
    run = config("Labelled", "Spectrum")
    job_of(run, Layout(data=2))
    with pytest.raises(UserError, match=r"fft_fft2 has no proven form on tiles;.*layout\.rows = layout\.cols = 1"):
        job_of(run, Layout(rows=2))
    model, images = Spectrum(2, 3), torch.randn(4, 2, ROWS, COLS)
    expected = copy.deepcopy(model)(images)
    alone = Imagined(1, 0)
    plan = plan_tiles(model, Layout(), (2, ROWS, COLS))
    assert convert(model, plan, Tiles(1, 1, alone, alone, alone))(images).equal(expected)


def test_targets_of_a_users_own_must_be_cut_as_the_output_is() -> None:
    run = config("Own", "halving", train={"loss_target": "tests.own_images:squares"})
    job_of(run)
    with pytest.raises(UserError, match=r"halving: its output is cut into tiles at .*only classes"):
        job_of(run, Layout(rows=2))


@pytest.mark.parametrize("gather_at", ["never", "head"])
def test_the_loss_knows_which_part_of_the_scores_is_a_ranks_own(gather_at: str) -> None:
    layout = Layout(rows=2)
    run = config("Dense", "unet", layout={"gather_at": gather_at})
    job = job_of(run, layout)
    with torch.device("meta"):
        model = make_model(run, 2, 3)
    plan = plan_of(run, layout, model, (2, ROWS, COLS))
    tiles = Tiles(2, 1, Imagined(2, 1), Imagined(2, 1), Imagined(1, 0))
    loss = make_loss(run, job, plan, index_events(run, open_source(run)), tiles)
    assert (loss.task, loss.group) == ("pixels", tiles.group)
    assert loss.part == (None if gather_at == "never" else ((20, 40), (0, COLS)))


def test_scores_of_events_are_the_same_on_every_rank() -> None:
    run, layout = config("Labelled", "Pooled"), Layout(rows=2)
    plan = plan_tiles(Pooled(2, 3), layout, (2, ROWS, COLS))
    tiles = Tiles(2, 1, Imagined(2, 1), Imagined(2, 1), Imagined(1, 0))
    loss = make_loss(run, job_of(run), plan, index_events(run, open_source(run)), tiles)
    assert (loss.task, loss.group, loss.part) == ("events", None, None)


def test_the_plan_speaks_of_rows_and_columns(tmp_path: Any) -> None:
    run, layout = config("Dense", "unet"), Layout(rows=2)
    source = open_source(run)
    index = index_events(run, source)
    stream = io.StringIO()
    console = Console(file=stream, width=200, color_system=None)
    job = make_job(run, DS, layout, source, index)
    print_overview(console, RunFolder(tmp_path), ResolvedRun(run, DS, job, index), here(layout.world_size))
    text = stream.getvalue()
    assert "12 of tests.own_images:Dense\n" in "\n".join(line.rstrip() for line in text.splitlines())
    assert "2 channels x 40 rows x 56 columns" in text and "rows 20-40, columns 0-56" in text


def test_the_configuration_of_an_augmentation() -> None:
    mirrored = {False: (False, False), True: (True, True), "both": (True, True)}
    for flip, axes in {**mirrored, "wires": (True, False), "ticks": (False, True)}.items():
        assert augmentation(config("Dense", "unet", data={"flip": flip})).flip == axes
    found = augmentation(config("Dense", "unet", data={"flip": True, "shift": [3, 4], "seed": 9}))
    assert (found.flip, found.shift, found.seed) == ((True, True), (3, 4), 9)
