from pathlib import Path

import pytest

from lartpc_ds import recipes
from lartpc_ds.config import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.launch.training import _reopen
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
    return _reopen(folder, *recipes.load(str(toml), overrides), Layout()).config


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
