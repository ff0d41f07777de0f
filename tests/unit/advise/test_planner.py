"""`lartpc-ds plan` end to end, with traces of a small network."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lartpc_ds.advise.search.planner import memory_of, plan
from lartpc_ds.config import recipes
from lartpc_ds.costs.applied import as_written
from lartpc_ds.costs.hardware import load
from lartpc_ds.costs.problem import Cost
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from tests.machine import GIB, machine

SMALL = ("data.downsample=[4,8]", "model.width=8", "data.batch=1")


def plan_small(devices: int, console: Console | None = None, budget_seconds: float = 2, **options: Any) -> int:
    console = console or Console()
    return plan("quickstart", console, devices=devices, overrides=SMALL, budget_seconds=budget_seconds, **options)


def shown(devices: int, width: int = 200, **options: Any) -> str:
    console = Console(width=width, record=True)
    assert plan_small(devices, console, **options) == 0
    return console.export_text()


def test_the_tables_keep_their_figures_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown(2, memory="4GiB", width=40)
    text = capsys.readouterr().out
    assert "…" not in text and "Take pipe" in text
    header = next(line for line in text.splitlines() if "events/s" in line)
    assert all(name in header for name in ("layout", "batch", "ZeRO", "levers", "GiB a rank", "global batch"))
    assert "assumed" in text


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    plan_small(4, memory="4GiB", as_json=True, per_node=2)
    tree = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (tree["devices"], tree["memory_bytes"]) == (4, 4 * GIB)
    best = tree["recommended"]
    assert best["fits"] and best["exact"] and best == tree["candidates"][0]
    assert best["peak_bytes"] == sum(best["memory_parts"].values())
    assert best["step_seconds"] == pytest.approx(sum(best["time_parts"].values()))
    assert best["global_batch"] == best["batch"] * best["accumulate"] * best["layout"]["data"]
    assert any("streaming is not offered" in told for told in tree["refused"])


def test_what_it_writes_is_what_it_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_small(4, memory="4GiB", as_json=True, per_node=2, write=tmp_path)
    best = json.loads(capsys.readouterr().out.splitlines()[-1])["recommended"]
    path = tmp_path / "quickstart-plan.toml"
    config, ds = recipes.load(str(path))
    candidate = as_written(config, ds, Layout(**best["layout"]))
    assert (candidate.batch, candidate.accumulate) == (best["batch"], best["accumulate"])
    assert (candidate.zero, candidate.offload) == (best["zero"], best["offload"])
    assert candidate.memory.model_dump(mode="json") == best["memory"]
    assert (config.layout.rows, config.layout.data) == (best["layout"]["rows"], best["layout"]["data"])
    assert (config.batch.nodes, config.batch.ranks_per_node) == (2, 2)
    assert config.data.downsample == (4, 8)
    assert set(tomllib.loads(path.read_text())["model"]) == {"name", "width", "stem_stride"}
    with pytest.raises(UserError, match=r"quickstart-plan\.toml: exists"):
        plan_small(4, write=tmp_path)


def test_where_nothing_fits_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--write: nothing fits"):
        plan_small(1, memory="1025MiB", write=tmp_path, budget_seconds=1)
    assert "Nothing fits" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_the_machine_says_what_is_not_said() -> None:
    assert memory_of(machine(24 * GIB), None, 4) == 24 * GIB
    on_cpu = machine(24 * GIB).model_copy(update={"device": "cpu"})
    assert memory_of(on_cpu, None, 4) == 6 * GIB
    assert memory_of(on_cpu, "2GiB", 4) == 2 * GIB
    assert load("a100-nvlink").devices_per_node == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"devices": 6}, "--devices 6: is no multiple of the 4 devices of a machine; take 4, or say --per-node"),
        ({"devices": 2, "memory": "40"}, "--memory '40'"),
        ({"devices": 2, "memory": "0.5GiB"}, "--memory '0.5GiB': must be more than the 1.0 GiB"),
        ({"devices": 2, "write": Path("missing")}, "--out missing: no such folder"),
    ],
)
def test_bad_input(options: dict[str, Any], told: str) -> None:
    def never(*_: object) -> Cost:
        raise AssertionError("nothing may be traced")

    with pytest.raises(UserError, match=told):
        plan_small(**options, cost=never)
