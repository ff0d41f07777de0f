"""Offload to the CPU, whose Adam DeepSpeed compiles at first use: with a compiler, and without one."""

import re
import shutil
from pathlib import Path

import pytest

from tests.integration.cli import overrides, run_cli
from tests.small_runs import write_events, write_run_toml

OFFLOAD = ["train", "run.toml", "--set", 'train.ds_config="zero2_offload_fp32"', "--run-dir"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_run_toml(tmp_path / "run.toml", write_events(tmp_path / "events.h5", 40))
    return tmp_path


@pytest.fixture
def compiled(cache: pytest.Cache) -> dict[str, str]:
    """Variables by which torch keeps what it compiles for the next tests, and leaves out what debuggers need.

    DeepSpeed asks for debugging symbols, which take half of the time. The compiler's path is part of what torch keeps,
    so it lies in pytest's cache as well.
    """
    folder = cache.mkdir("torch_extensions")
    compiler = folder / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -g0\n')
    compiler.chmod(0o755)
    return {"TORCH_EXTENSIONS_DIR": str(folder), "CXX": str(compiler)}


def test_offload_trains_or_names_the_compiler_it_lacks(work: Path, compiled: dict[str, str]) -> None:
    """The first run in a checkout compiles DeepSpeed's CPU Adam, about a minute; the next do not."""
    there_is_one = shutil.which("g++") is not None
    environment = compiled if there_is_one else {}
    finished = run_cli(work, *OFFLOAD, "offloaded", environment=environment, timeout_seconds=400)
    if there_is_one:
        assert finished.code == 0, finished.out + finished.err
        assert (work / "offloaded" / "DONE").exists()
        assert list(Path(compiled["TORCH_EXTENSIONS_DIR"]).rglob("cpu_adam.so"))
    else:
        assert finished.code == 2 and "g++" in finished.err


def test_offload_without_a_compiler_is_refused_and_the_advice_works(work: Path) -> None:
    bare = {"PATH": str(work), "CXX": "g++"}
    refused = run_cli(work, *OFFLOAD, "bare", environment=bare)
    assert refused.code == 2 and "Traceback" not in refused.err
    assert "offload_optimizer" in refused.err and "apt-get install g++" in refused.err
    assert not (work / "bare").exists()
    advice = re.findall(r"ds\.[\w.]+=\w+", refused.err)
    assert len(advice) == 2
    followed = run_cli(work, *OFFLOAD, "bare", *overrides(advice), environment=bare)
    assert followed.code == 0, followed.out + followed.err
