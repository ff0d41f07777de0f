"""`lartpc-ds scale` through the real launcher: a tiny study of two ranks and of two tiles."""

import csv
import json
from pathlib import Path

from tests.integration.cli import run_cli
from tests.small_runs import write_events, write_run_toml


def test_a_tiny_study(tmp_path: Path) -> None:
    write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 20))
    asked = ["--ranks", "1,2", "--mode", "data,tiles", "--weak", "--strong", "--repeats", "1", "--steps", "1"]
    finished = run_cli(tmp_path, "scale", "run.toml", *asked, "--out", "study", timeout_seconds=300)
    assert finished.code == 0, finished.out + finished.err
    assert "threads per rank: 1, the same at every size" in finished.out
    with (tmp_path / "study" / "scale.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["mode"], row["scaling"], row["ranks"], row["global_batch"], row["failure"]) for row in rows] == [
        *(("data", "weak", "1", "2", ""), ("data", "weak", "2", "4", "")),
        *(("data", "strong", "1", "4", ""), ("data", "strong", "2", "4", "")),
        *(("tiles", "strong", "1", "2", ""), ("tiles", "strong", "2", "2", "")),
    ]
    assert all(float(row["step_seconds"]) > 0 and float(row["peak_bytes"]) > 0 for row in rows)
    assert float(rows[5]["halo_seconds"]) > 0 and float(rows[4]["halo_seconds"]) == 0
    samples = [json.loads(line) for line in (tmp_path / "study" / "scale.jsonl").read_text().splitlines()]
    assert len(samples) == 4  # the jobs of one rank, and those of two ranks, are shared by two series each
    assert (tmp_path / "study" / "scale-resnet18.png").read_bytes().startswith(b"\x89PNG")
