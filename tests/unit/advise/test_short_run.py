"""The harness of short runs, without its processes."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lartpc_ds.advise.short_runs import short_run
from lartpc_ds.advise.short_runs.short_run import ShortRun, by_figure, medians, take_turns
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.jobs.together import PINNED, RanksFailed
from lartpc_ds.layout import Layout


class Counted:
    """Stands for a short run whose steps take ever longer, the first one longest."""

    calls: list[tuple[str, bool]]

    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        self.name, self.calls = name, calls

    def steps(self, variables: Mapping[str, str]) -> list[dict[str, Any]]:
        self.calls.append((self.name, variables == PINNED))
        seconds = [100.0, len(self.calls), len(self.calls) + 1.0, len(self.calls) + 2.0]
        return [{"step_seconds": one, "peak_bytes": 10 * one} for one in seconds]


def test_runs_take_turns_and_peaks_come_from_pinned_processes() -> None:
    calls: list[tuple[str, bool]] = []
    runs = {name: Counted(name, calls) for name in ("a", "b")}
    told: list[str] = []
    samples = take_turns(runs, 2, told.append, ("step_seconds", "sent_bytes"))  # type: ignore[arg-type]
    assert [name for name, _ in calls] == ["a", "a", "b", "b", "b", "b", "a", "a"]
    assert [pinned for _, pinned in calls] == [False, True] * 4
    # the median and the largest peak without the first step
    assert samples["a"] == {"step_seconds": [2.0, 8.0], "sent_bytes": [0, 0], "peak_bytes": [40.0, 100.0]}
    assert medians(samples, "step_seconds") == {"a": 5.0, "b": 5.0}
    assert by_figure(samples)["peak_bytes"] == {"a": [40.0, 100.0], "b": [60.0, 80.0]}
    assert told[0] == "1/2 a: 2.000 s per step, at most 0 MiB per rank" and len(told) == 4


class Failing(Counted):
    def steps(self, variables: Mapping[str, str]) -> list[dict[str, Any]]:
        super().steps(variables)
        raise RanksFailed("rank failed:\nTraceback\nOSError: no more")


def test_a_run_that_fails_is_left_out_only_where_that_is_wanted() -> None:
    calls: list[tuple[str, bool]] = []
    runs: Any = {"a": Failing("a", calls), "b": Counted("b", calls)}
    failures: dict[str, str] = {}
    samples = take_turns(runs, 2, lambda _: None, failures=failures)
    assert failures == {"a": "OSError: no more"}
    assert [name for name, _ in calls] == ["a", "b", "b", "b", "b"]
    assert samples["a"] == {"step_seconds": [], "peak_bytes": []}
    with pytest.raises(RanksFailed):
        take_turns(runs, 1, lambda _: None)


def test_a_short_run_changes_its_folder_only_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    job = {"layout": {"pipe": 1, "data": 1, "rows": 1, "cols": 1}, "stages": [], "classes": ["muon"]}
    folder.job_file.write_text(json.dumps(job))
    folder.ds_config_file.write_text('{"train_batch_size": 3}')
    folder.config_file.write_text("[data]\nbatch = 3\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def inside(folder: RunFolder, program: str, ranks: int, variables: Mapping[str, str]) -> list[Any]:
        texts = (folder.job_file.read_text(), folder.ds_config_file.read_text(), folder.config_file.read_text())
        seen = [program, ranks, json.loads(texts[0]), json.loads(texts[1]), tomllib.loads(texts[2])]
        return [[{"seen": seen, "loss": 1.0 + rank, "peak_bytes": 5 + rank}] for rank in range(ranks)]

    monkeypatch.setattr(short_run, "run_ranks", inside)
    tiles = ShortRun(folder, layout=Layout(rows=2), memory=MemoryConfig(lean_norm=True))
    (line,) = tiles.steps({})
    assert (line["loss"], line["peak_bytes"]) == (1.5, 6)
    program, ranks, job_inside, ds_inside, config_inside = line["seen"]
    assert (program, ranks, ds_inside) == ("ours", 2, {"train_batch_size": 6})
    assert job_inside == {**job, "layout": {"pipe": 1, "data": 1, "rows": 2, "cols": 1}}
    assert config_inside["data"] == {"batch": 3} and config_inside["memory"]["lean_norm"] is True
    assert ShortRun(folder, "plain").steps({})[0]["seen"][:3] == ["plain", 1, job]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
