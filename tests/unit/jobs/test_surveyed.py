"""`train` looks at every event once: before a fresh run, and not again when it is resumed."""

import io
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console

from lartpc_ds.config import recipes
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError
from lartpc_ds.jobs import evaluate as evaluation
from lartpc_ds.jobs.resolve import prepare_run, reopen_run
from lartpc_ds.layout import Layout
from lartpc_ds.training import session
from lartpc_ds.training.sources import reopen_source
from tests.small_runs import write_events, write_run_toml

QUIET = Console(quiet=True)
SEEN = "pixels hold "


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunConfig, dict[str, Any], RunFolder]:
    toml = write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 40))
    config, ds = recipes.load(str(toml), [])
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    return config, ds, folder


def test_a_resumed_run_says_what_was_found_and_reads_no_voxel(run, monkeypatch):
    config, ds, folder = run
    fresh = prepare_run(config, ds, Layout(), folder, QUIET, look=True)
    assert fresh.findings[0].startswith(SEEN)
    monkeypatch.setattr("lartpc_ds.data.larcv3.Larcv3Reader.block", None)
    resumed = reopen_run(folder, config, ds, Layout())
    assert resumed.findings == fresh.findings


def test_what_isolated_drops_is_a_finding_and_the_key_is_part_of_the_run(run, tmp_path):
    config, ds, folder = run
    alone = config.model_copy(update={"data": config.data.model_copy(update={"threshold": 30.0, "isolated": 2})})
    fresh = prepare_run(alone, ds, Layout(), folder, QUIET, look=True)
    assert re.fullmatch(
        r"data\.isolated = 2 drops [1-9].* % of the lit pixels with .* % of the charge.*", fresh.findings[-1]
    )
    assert reopen_run(folder, alone, ds, Layout()).findings == fresh.findings
    with pytest.raises(UserError, match=r"data\.isolated: was 2, is 0"):
        reopen_run(folder, alone.model_copy(update={"data": config.data}), ds, Layout())
    opened = session.open_run(folder)[0]
    source = reopen_source(opened.config, opened.index, opened.job.image_shape, "events")
    assert source.pre.isolated == 2, "an evaluation reads the images that the run was trained on"


def test_what_is_lit_is_a_finding_and_every_event_has_its_cost(run):
    config, ds, folder = run
    memory = config.memory.model_copy(update={"lit_block": 32, "lit_until": "never"})
    lit = config.model_copy(update={"memory": memory})
    fresh = prepare_run(lit, ds, Layout(), folder, QUIET, look=True)
    shares, brightest, cost, memory_kept = fresh.findings[-4:]
    assert "patches of 32 x 32 pixels" in shares and ": image 100 % (100 %, 100 %), stem" in shares
    assert re.search(r"events\.h5: event \d+, which lights 100 % of the image's patches$", brightest)
    assert "1.4 of a step on whole maps" in cost
    kept = re.search(
        r"the median event .* (\d+) MiB of maps, and the brightest (\d+) MiB; whole .* (\d+) MiB", memory_kept
    )
    assert kept is not None, memory_kept
    median, most, whole = map(int, kept.groups())
    assert median <= most <= whole, "patches keep at most what whole maps keep"
    assert 1.2 < fresh.index.cost.min() < fresh.index.cost.max() == 1.35, "nearly all is lit, and patches are dearer"
    resumed = reopen_run(folder, lit, ds, Layout())
    assert resumed.findings == fresh.findings
    np.testing.assert_array_equal(resumed.index.cost, fresh.index.cost)


def test_without_lit_the_table_has_no_cost(run):
    config, ds, folder = run
    assert prepare_run(config, ds, Layout(), folder, QUIET, look=True).index.cost is None
    assert folder.events_file.read_text().splitlines()[0].endswith("label,split")


def test_an_absurd_value_ends_the_run_before_it_begins(run, tmp_path):
    config, ds, folder = run
    with h5py.File(tmp_path / "events.h5", "r+") as file:
        voxels = file["Data/sparse2d_wire_group/voxels"]
        rows = voxels[:]
        rows["value"][70] = 3e38  # events have 40, 160 and 280 voxels
        voxels[:] = rows
    with pytest.raises(UserError, match=r"events\.h5: event 1, plane 0 holds the value 3e\+38.*data\.saturate"):
        prepare_run(config, ds, Layout(), folder, QUIET, look=True)
    assert not folder.events_file.exists() and not folder.config_file.exists()
    bounded = config.model_copy(update={"data": config.data.model_copy(update={"saturate": 100.0})})
    resolved = prepare_run(bounded, ds, Layout(), folder, QUIET, look=True)
    assert resolved.findings[0].startswith("pixels hold 5.") and "to 3e+38 in plane 0" in resolved.findings[0]
    assert "data.saturate bounds such values" in resolved.findings[-1]


def test_files_to_evaluate_may_repeat_events(run, tmp_path):
    config, ds, folder = run
    prepare_run(config, ds, Layout(), folder, QUIET)
    other = tmp_path / "copy.h5"
    other.write_bytes((tmp_path / "events.h5").read_bytes())
    console = Console(file=io.StringIO(), width=200)
    both = [str(tmp_path / "events.h5"), str(other)]
    _, index, positions = evaluation._given_files(session.open_run(folder)[0], ds, both, console)
    assert len(positions) == len(index) == 80
    assert "40 of 80 events repeat another one, by id or pixel by pixel: used too" in console.file.getvalue()
