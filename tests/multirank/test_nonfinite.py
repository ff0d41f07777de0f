"""Absurd pixels end a run on every rank with the same words, which name the event; nothing that is written has NaN."""

import json
from pathlib import Path

import pytest

from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.event_index import read_index
from lartpc_ds.errors import RunError
from lartpc_ds.training import session
from tests.ranks import run_ranks
from tests.small_runs import PDGS, prepared, write_events, write_run_toml

TRAINED, HELD_OUT = 0, 5


def train(path: Path) -> str:
    try:
        session.train(RunFolder(path), resume=False, stop_requested=lambda: False)
    except RunError as error:
        return str(error)
    return "no error"


def refuse(constant: str) -> None:
    raise AssertionError(constant)


@pytest.mark.parametrize(
    ("absurd", "settings", "told"),
    [
        (TRAINED, ['train.ds_config="zero2_fp32"'], "step 1: the loss is nan. It comes from 4 event(s), whose "),
        (
            TRAINED,
            ['train.ds_config="zero1_bf16"', "layout.pipe=2", "train.accumulate=2"],
            "step 1: the loss is nan. It comes from 8 event(s), whose ",
        ),
        (
            HELD_OUT,
            ['train.ds_config="zero0_fp32"', 'model.norm="group"'],
            "scores of evaluated events are not finite. It comes from ",
        ),
    ],
)
def test_the_run_stops_and_names_the_event(tmp_path: Path, absurd: int, settings: list[str], told: str) -> None:
    events = write_events(tmp_path / "events.h5", 12, absurd)
    toml = write_run_toml(tmp_path / "run.toml", events)
    more = ["data.batch=4", "train.max_steps=1"]
    run = prepared(tmp_path / "run", toml, [*settings, *more], ranks=2)
    index = read_index(run.events_file, ("electron", "gamma", "muon"))
    assert index.split[absurd] == ("train" if absurd == TRAINED else "validation") and len(PDGS) == 3
    one, other = run_ranks(2, train, run.path)
    assert one == other
    assert told in one
    assert f"are: 3e+38 in event {absurd} of {events} (run 1, subrun 1, event {absurd})" in one
    assert not run.done_file.exists() and not (run.checkpoints / "last").exists()
    for line in run.metrics_file.read_text().splitlines() if run.metrics_file.exists() else []:
        json.loads(line, parse_constant=refuse)
