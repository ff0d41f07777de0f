"""A calibration from its processes to its file, on tensors that take no time."""

from pathlib import Path

import pytest
from rich.console import Console

from lartpc_ds.advise.calibrate.calibrate import calibrate
from lartpc_ds.costs.hardware import load
from lartpc_ds.costs.kernels import CONVOLUTIONS, Sizes
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.together import run_together

TINY = Sizes(map_bytes=1 << 16, convolution_flops=1e6, matmul_side=64, fresh_bytes=40 << 20, repeats=1)


def test_a_machine_of_two_ranks_is_measured_and_written(tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    console = Console(record=True, width=200)
    hardware = calibrate(out, console, devices=2, sizes=TINY)
    assert load(str(out)) == hardware
    shown = console.export_text()
    assert str(out) in shown and "of 2" in shown
    assert hardware.device == "cpu" and not hardware.overlaps
    assert [found.ranks for found in hardware.rates] == [1, 2]
    for found in hardware.rates:
        assert len(found.convolutions) == 2 * sum(len(one.ways) for one in CONVOLUTIONS)
        assert found.operator_seconds > 0
    assert 10 << 20 < hardware.process_bytes < 1 << 30
    assert "NOT measured" in hardware.source
    assert hardware.within != hardware.across
    with pytest.raises(UserError, match=r"mine\.toml: exists; choose another --out"):
        calibrate(out, console, devices=2, sizes=TINY)


def test_one_host_cannot_say_what_is_between_hosts(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\n")
    with pytest.raises(UserError, match="has one host"):
        calibrate(tmp_path / "out.toml", Console(), hostfile=hostfile)
    assert not (tmp_path / "out.toml").exists()


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="invalid choice"):
        run_together("lartpc_ds.advise.calibrate.calibration_rank", ["nothing"], 2, {})
