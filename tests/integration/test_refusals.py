"""Bad input ends before anything runs or is written, with exit code 2 and one message that names what is wrong.

The commands run in this process, because none of them should come as far as to start another.
"""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import pytest

from lartpc_ds.commands import cli
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.larcv3 import Larcv3Writer
from lartpc_ds.training import session
from tests.integration.cli import overrides, run_cli
from tests.ranks import run_ranks
from tests.small_runs import prepared, random_event, write_events, write_run_toml

Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.toml, events.h5 and a finished run in `run`."""
    folder = tmp_path_factory.mktemp("finished")
    toml = write_run_toml(folder / "run.toml", write_events(folder / "events.h5", 40))
    run_ranks(1, train_one_rank, prepared(folder / "run", toml).path)
    assert (folder / "run" / "DONE").exists()
    return folder


def train_one_rank(path: Path) -> None:
    session.train(RunFolder(path), resume=False, stop_requested=lambda: False)


@pytest.fixture
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, in which commands run; its run still reads the original events."""
    shutil.copytree(finished, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def refuse(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refuse]:
    """Run a command that must be refused; returns its message."""

    def run(*arguments: str) -> str:
        before = contents(work)
        monkeypatch.setattr(sys, "argv", ["lartpc-ds", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        streams = capsys.readouterr()
        assert ended.value.code == 2, streams.out + streams.err
        assert streams.out == "" and "Traceback" not in streams.err
        assert streams.err.startswith("lartpc-ds: ") and streams.err.count("lartpc-ds: ") == 1
        assert contents(work) == before
        return streams.err

    yield run
    logging.disable(logging.NOTSET)  # main() silences DeepSpeed


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def says(message: str, words: Sequence[str]) -> None:
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"


def training(*settings: str, run_dir: str = "new", run: str = "run.toml") -> list[str]:
    return ["train", run, *overrides(settings), "--devices", "1", "--run-dir", run_dir]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.bach=4"], ["data.bach", "batch"]),
        (["data.batch=0", "train.epochs=-1"], ["data.batch", "train.epochs"]),
        (["train.max_steps"], ["--set 'train.max_steps'", "KEY=VALUE"]),
        (["model.name=resnet19"], ["model.name", "resnet19", "resnet18"]),
        (["model.name.deep=1"], ["model.name.deep", "not a section"]),
        (["ds.gradient_cliping=1.0"], ["gradient_cliping", "unknown key"]),
        (["ds.zero_optimization.stagee=2"], ["zero_optimization.stagee", "unknown key"]),
        (["ds.train_batch_size=4"], ["train_batch_size", "data.batch"]),
        (["ds.optimizer.params.learning_rate=0.1"], ["optimizer.params.learning_rate", "lr"]),
        (['train.ds_config="zero9_fp32"'], ["zero9_fp32", "zero2_bf16"]),
        (["layout.data=3"], ["data 3", "--devices is 1"]),
        (["layout.rows=2"], ["rows 2", "needs 2 ranks or a multiple", "--devices is 1"]),
        (["layout.pipe=2"], ["pipe 2", "needs 2 ranks or a multiple", "--devices is 1"]),
        (['layout.cuts=["layer2_0"]'], ["layout", "cuts", "layer2_0", "pipe = 1", "set pipe = 2"]),
        (["layout.pipe=2", "memory.stream_strips=4"], ["memory.stream_strips = 4", "needs layout.pipe = 1"]),
        (['data.classes=["electron","kaon"]'], ["data.classes", "no events of kaon"]),
        (['data.classes=["electron","axion"]'], ["data.classes", "axion", "kaon"]),
        (["data.split={train=0.5,validation=0.6}"], ["data.split", "1.1"]),
        (['data.detector="argoneut"', 'data.product="raw"'], ["data.product", "raw", "wire"]),
        (['data.detector="icarus"'], ["icarus", "microboone"]),
        (['data.files=["nowhere/*.h5"]'], ["data.files", "nowhere/*.h5"]),
        (['model.weights="nowhere.pt"'], ["model.weights", "nowhere.pt"]),
        (['model.weights="run.toml"'], ["model.weights", "run.toml"]),
        (["model.width=8", 'model.weights="run/checkpoints/last/model.pt"'], ["model.weights", "model.pt"]),
        (["memory.stream_strips=0"], ["memory.stream_strips", "greater than or equal to 1"]),
        (["memory.stream_strips=2"], ["stem.1 (torch.nn)", "batch_norm", "sweep", "--set model.norm=layer"]),
        (
            ['model.norm="layer"', "memory.stream_strips=2", 'memory.stream_until="layer9"'],
            ["memory.stream_until", "layer9", '"auto"', "layer2_0"],
        ),
        (
            ['model.norm="layer"', "memory.stream_strips=10", 'memory.stream_until="layer2_0"'],
            ["memory.stream_strips = 10", "9 rows", "fewer strips"],
        ),
    ],
    ids=lambda value: value[-1] if "=" in value[-1] or "." in value[-1] else "",
)
def test_impossible_configurations(refuse: Refuse, settings: list[str], words: list[str]) -> None:
    says(refuse(*training(*settings)), words)


@pytest.mark.parametrize(
    ("devices", "settings", "words"),
    [
        (3, ["layout.rows=2"], ["rows 2 x cols 1", "needs 2 ranks or a multiple", "--devices is 3"]),
        (40, ["layout.rows=40"], ["33 pixels", "40 tiles"]),
        (2, ["layout.rows=2", "memory.stream_strips=2"], ["memory.stream_strips = 2", "layout.rows = 2", "take one"]),
        (2, ["layout.rows=2", 'layout.gather_at="layer9"'], ["layout.gather_at", "layer9", "layer4_1"]),
        (8, ["layout.rows=8", 'layout.gather_at="never"'], ["layer", "resnet.py", "a tile is empty", "layout.rows"]),
        (
            2,
            ["layout.rows=2", 'model.target="tests.integration.users_models:flattens"'],
            ["the model's own forward", "users_models.py", "flatten", "AdaptiveAvgPool2d(1)"],
        ),
    ],
    ids=[
        "a group that does not divide the world",
        "more tiles than pixels",
        "tiles and strips",
        "no block",
        "empty tile",
        "operator",
    ],
)
def test_impossible_tiles(refuse: Refuse, work: Path, devices: int, settings: list[str], words: list[str]) -> None:
    toml = work / "run.toml"
    if any("model.target" in setting for setting in settings):
        toml.write_text(toml.read_text().replace("width = 4\n", ""))
    says(refuse(*training(*settings), "--devices", str(devices)), words)


ZERO1 = "ds.zero_optimization.stage=1"


@pytest.mark.parametrize(
    ("pipe", "settings", "words"),
    [
        (2, [], ["zero2_fp32", "layout.pipe = 2", "ZeRO-2", f"--set {ZERO1}"]),
        (11, [ZERO1], ["layout.pipe = 11", "the model has 10", "stem, layer1_0", "layout.pipe to 10"]),
        (2, [ZERO1, 'layout.cuts=["layer9"]'], ["layout.cuts = ['layer9']", "blocks: pool, layer1_0"]),
    ],
    ids=["ZeRO-2", "too many", "no block"],
)
def test_impossible_stages(refuse: Refuse, pipe: int, settings: list[str], words: list[str]) -> None:
    says(refuse(*training(f"layout.pipe={pipe}", *settings), "--devices", str(pipe)), words)


def test_every_problem_is_named_at_once(refuse: Refuse) -> None:
    settings = ["data.bach=4", 'model.width="wide"', "train.accumulate=0"]
    says(refuse(*training(*settings)), ["data.bach", "model.width", "train.accumulate"])


def test_an_unknown_run(refuse: Refuse) -> None:
    says(refuse(*training(run="sbdn")), ["'sbdn'", "sbnd", "quickstart"])


def test_a_run_that_is_no_toml(refuse: Refuse) -> None:
    says(refuse(*training(run="events.h5")), ["events.h5", "not TOML"])


def test_an_existing_run_folder(refuse: Refuse) -> None:
    says(refuse(*training(run_dir="run")), ["already exists", "--resume"])


def test_no_devices(refuse: Refuse) -> None:
    says(refuse("train", "run.toml", "--devices", "0"), ["--devices 0"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_text(path: Path) -> None:
    path.write_text("run,event,charge\n" * 100)


def drop_images(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["Data/sparse2d_wire_group"]


def drop_truth(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["Data/particle_mctruth_group"]


def drop_column(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        voxels = file["Data/sparse2d_wire_group/voxels"]
        ids = voxels["id"]
        del file["Data/sparse2d_wire_group/voxels"]
        file["Data/sparse2d_wire_group/voxels"] = ids.astype([("id", "<u8")])


def stretch_extent(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        extents = file["Data/sparse2d_wire_group/voxel_extents"]
        row = extents[2 * 3]
        row["N"] = 10**9
        extents[2 * 3] = row


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, ["truncated"]),
        (replace_by_text, ["not an HDF5 file"]),
        (drop_images, ["sparse2d_<product>_group"]),
        (drop_truth, ["particle_<name>_group"]),
        (drop_column, ["sparse2d_wire_group/voxels", "value"]),
        (stretch_extent, ["sparse2d_wire_group/voxel_extents", "1000000000"]),
    ],
)
def test_damaged_files(refuse: Refuse, work: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(work / "events.h5")
    says(refuse(*training('data.files=["events.h5"]')), ["events.h5", *words])


def test_an_empty_split_of_non_zero_share(refuse: Refuse, work: Path) -> None:
    write_events(work / "two.h5", 2)
    settings = ['data.files=["two.h5"]', 'data.classes=["electron","gamma"]', "data.split={train=0.99,validation=0.01}"]
    says(refuse(*training(*settings)), ["data.split.validation", "0.01", "none of 2 events"])


def test_fp16_needs_cuda(work: Path) -> None:
    """In a process of its own, which is told that there is none."""
    finished = run_cli(work, *training('train.ds_config="zero2_fp16"'))
    assert finished.code == 2 and finished.out == "" and "Traceback" not in finished.err
    says(finished.err, ["fp16", "CUDA", "zero0_bf16"])
    assert not (work / "new").exists()


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("model.width=8", "model.width: was 4, is 8"),
        ('model.name="convnext"', "model.name"),
        ("data.batch=4", "data.batch"),
        ("data.seed=5", "data.seed"),
        ('data.classes=["electron","muon"]', "data.classes"),
        ("ds.optimizer.params.weight_decay=0.5", "ds.optimizer.params.weight_decay"),
        ('train.ds_config="zero3_fp32"', "train.ds_config"),
    ],
)
def test_resume_of_another_run(refuse: Refuse, finished: Path, setting: str, key: str) -> None:
    files = f'data.files=["{finished / "events.h5"}"]'
    says(refuse(*training(files, setting, run_dir="run"), "--resume"), ["--resume", "another run", key])


def test_resume_on_other_ranks(refuse: Refuse, finished: Path) -> None:
    files = f'data.files=["{finished / "events.h5"}"]'
    arguments = ["train", "run.toml", *overrides([files]), "--devices", "2", "--run-dir", "run", "--resume"]
    says(refuse(*arguments), ["layout.data: was 1, is 2"])


def test_resume_without_a_folder(refuse: Refuse) -> None:
    says(refuse("train", "run.toml", "--devices", "1", "--resume"), ["--resume", "--run-dir"])


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_resume_of_no_run(refuse: Refuse, folder: str) -> None:
    says(refuse(*training(run_dir=folder), "--resume"), ["not a run folder"])


@pytest.mark.parametrize("folder", ["nowhere", ".", "events.h5"])
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_no_run(refuse: Refuse, command: str, folder: str) -> None:
    says(refuse(command, folder), ["not a run folder"])


@pytest.mark.parametrize("command", ["evaluate", "report"])
@pytest.mark.parametrize("run", ["quickstart", "run.toml"])
def test_what_has_no_results_yet(refuse: Refuse, command: str, run: str) -> None:
    says(refuse(command, run), [f"{run}: says how to train, and has no results", f"`lartpc-ds train {run}` makes"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--launcher", "pdsh", "--include", "a"], ["--launcher, --include: without effect", "--hostfile"]),
        (["--hostfile", "missing"], ["missing"]),
        (["--hostfile", "hosts", "--devices", "2"], ["--devices 2: with --hostfile"]),
        (["--hostfile", "hosts", "--include", "beta"], ["beta"]),
    ],
)
def test_evaluate_where_it_cannot(refuse: Refuse, work: Path, options: list[str], words: list[str]) -> None:
    (work / "hosts").write_text("localhost slots=2\n")
    says(refuse("evaluate", "run", *options), words)


@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
@pytest.mark.parametrize("name", ["config.toml", "job.json", "events.csv", "files.json"])
def test_resume_of_a_damaged_folder(refuse: Refuse, work: Path, name: str, damage: str) -> None:
    damaged(work / "run" / name, damage)
    says(refuse(*training(run_dir="run"), "--resume"), ["run: ", name, "Restore it from a copy"])


def test_resume_without_a_whole_checkpoint(refuse: Refuse, work: Path) -> None:
    damaged(work / "run/checkpoints/step_0000004/rank0.pt", "half")
    said = refuse(*training(run_dir="run"), "--resume")
    says(said, ["--resume", "no checkpoint", "step_0000004: rank0.pt has", "another --run-dir"])


def damaged(path: Path, damage: str) -> None:
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")


@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_evaluate_damaged_weights(refuse: Refuse, work: Path, damage: str) -> None:
    damaged(work / "run/checkpoints/step_0000004/model.pt", damage)
    says(refuse("evaluate", "run"), ["step_0000004: model.pt", "there is no other"])


def test_train_on_damaged_weights_of_another_run(refuse: Refuse, work: Path) -> None:
    damaged(work / "run/checkpoints/step_0000004/model.pt", "half")
    says(refuse(*training('model.weights="run/checkpoints/last/model.pt"')), ["model.weights", "model.pt has"])


def test_evaluate_an_unknown_checkpoint(refuse: Refuse) -> None:
    says(refuse("evaluate", "run", "--checkpoint", "step_0000099"), ["step_0000099", "best, last, step_0000004"])


def write_of_shapes(path: Path, *shapes: tuple[int, int]) -> None:
    with Larcv3Writer(path) as writer:
        for index in range(6):
            writer.write(random_event(index, shapes))


def test_evaluate_files_of_another_image_size(refuse: Refuse, work: Path) -> None:
    write_of_shapes(work / "larger.h5", (65, 97), (65, 97))
    says(refuse("evaluate", "run", "--files", "larger.h5"), ["--files", "65 wires x 97 ticks", "2 planes x 33 x 49"])


def test_evaluate_files_with_another_number_of_planes(refuse: Refuse, work: Path) -> None:
    write_of_shapes(work / "three.h5", (33, 49), (33, 49), (33, 49))
    says(refuse("evaluate", "run", "--files", "three.h5"), ["--files", "3 planes", "2"])


def test_evaluate_files_of_other_classes(refuse: Refuse, work: Path) -> None:
    with Larcv3Writer(work / "kaons.h5") as writer:
        for index in range(3):
            event = random_event(index)
            event.particles["pdg"] = 321
            writer.write(event)
    says(
        refuse("evaluate", "run", "--files", "kaons.h5"), ["--files", "none of their 3 events", "electron, gamma, muon"]
    )


def test_evaluate_files_that_are_damaged(refuse: Refuse, work: Path) -> None:
    truncate(work / "events.h5")
    says(refuse("evaluate", "run", "--files", "events.h5"), ["events.h5", "truncated"])
