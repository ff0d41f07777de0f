from pathlib import Path

import pytest

from lartpc_ds.config import recipes
from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.resolve import reopen_run
from lartpc_ds.layout import Layout
from tests.small_runs import prepared, write_events, write_run_toml


def reopened(tmp_path: Path, *overrides: str, without: str = "") -> RunConfig:
    """A run's configuration after a resume with `overrides`, on a folder whose config.toml lacks a section."""
    toml = write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 12))
    folder = prepared(tmp_path / "run", toml)
    if without:
        kept, _, rest = folder.config_file.read_text().partition(f"[{without}]\n")
        folder.config_file.write_text(kept + (rest[rest.index("\n[") :] if "\n[" in rest else ""))
        assert f"[{without}]" not in folder.config_file.read_text()
    return reopen_run(folder, *recipes.load(str(toml), overrides), Layout()).config


def test_a_resumed_run_may_ask_a_batch_system_for_something_else(tmp_path: Path) -> None:
    changes = [
        'batch.time="02:00:00"',
        "batch.nodes=3",
        'batch.prologue=["module load cuda"]',
        "batch.signal_seconds=60",
    ]
    batch = reopened(tmp_path, *changes).batch
    assert (batch.time, batch.nodes, batch.prologue, batch.signal_seconds) == ("02:00:00", 3, ("module load cuda",), 60)


def test_a_run_from_before_there_was_a_batch_section_goes_on(tmp_path: Path) -> None:
    assert reopened(tmp_path, "batch.nodes=2", without="batch").batch.nodes == 2


def test_a_resumed_run_may_not_become_another_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds another run:\n  data\.batch: was 2, is 1\n"):
        reopened(tmp_path, "data.batch=1", "batch.nodes=2")


def test_a_run_folder_asks_for_what_its_run_was_given(tmp_path: Path) -> None:
    toml = write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 12))
    given = ["ds.optimizer.params.lr=3e-4", "train.accumulate=3", "model.norm=group"]
    folder = prepared(tmp_path / "mine.v2", toml, given)
    config, ds = recipes.load(str(folder.path))
    assert (config, ds) == recipes.load(str(toml), given)
    assert reopen_run(folder, config, ds, Layout()).config == config, "so RUN --resume needs no other options"
    assert recipes.load(str(folder.path), ["model.width=8", "ds.gradient_clipping=2.0"])[1]["gradient_clipping"] == 2
    other = recipes.load(str(folder.path), ["train.ds_config=zero0_fp32"])[1]
    assert other == recipes.load(str(toml), ["train.ds_config=zero0_fp32"])[1]
    assert recipes.stem_of(str(folder.path)) == "mine.v2"
    assert recipes.as_written(str(folder.path))["model"]["norm"] == "group"


def test_only_the_folder_of_a_run_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 12))
    folder = prepared(tmp_path / "quickstart", toml)
    monkeypatch.chdir(tmp_path)
    assert recipes.load("quickstart")[0].data.files == (), "a recipe's name is the recipe"
    assert recipes.load("./quickstart")[0].data.files == (str(tmp_path / "events.h5"),)
    assert recipes.folder_of(Path("quickstart")) == folder
    monkeypatch.chdir(folder.path)
    assert recipes.load(".")[0].data.files
    with pytest.raises(UserError, match="RUN = ''"):
        recipes.load("")
