"""The `sbnd` recipe on two real events: ZeRO stages and grids of tiles are one algorithm, so their losses are equal."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.cli import overrides, started

SETTINGS = [
    "data.downsample=8",  # 3 x 256 x 160: a quick test, the same files, truth and code
    "model.width=8",
    "train.max_steps=3",
    'ds.optimizer={type="SGD",params={lr=0.01,momentum=0.9}}',
]


def test_zero_stages_and_tiles_give_the_losses_of_one_rank(tmp_path: Path, real_events: Path) -> None:
    """Each stage of ZeRO once, and each way to tile once; ZeRO parts its states over the ranks of the tiles, too."""
    seed = "train.seed=4"  # of its network no ReLU sits on the empty background's value, where rounding would decide
    runs = {
        "whole": (1, [seed, 'train.ds_config="zero0_fp32"']),
        "2x1": (2, [seed, 'train.ds_config="zero1_fp32"', "layout.rows=2"]),
        "1x2": (2, [seed, 'train.ds_config="zero2_fp32"', "layout.cols=2", "layout.overlap=false"]),
        "1x2 at once": (2, [seed, 'train.ds_config="zero3_fp32"', "layout.cols=2"]),
    }
    losses = losses_of(tmp_path, real_events, runs)
    for name in runs:
        assert losses[name] == pytest.approx(losses["whole"], abs=1e-5), name


def losses_of(tmp_path: Path, real_events: Path, runs: dict[str, tuple[int, list[str]]]) -> dict[str, list[float]]:
    """Losses of three steps of each run, given as its ranks and settings."""
    files = f'data.files=["{real_events.resolve() / "sbnd_2events_larcv3.h5"}"]'
    losses = {}
    with ExitStack() as jobs:
        running = {}
        for name, (ranks, settings) in runs.items():
            folder = name.replace(" ", "_")
            asked = overrides([files, *SETTINGS, *settings])
            arguments = ["train", "sbnd", *asked, "--devices", str(ranks), "--run-dir", folder]
            running[name] = jobs.enter_context(started(tmp_path, *arguments, run_dir=folder))
        for name, job in running.items():
            finished = job.finish()
            assert finished.code == 0, finished.out + finished.err
            assert "2 in 1 file(s)" in finished.out and "3 planes x 256 wires x 160 ticks" in finished.out
            losses[name] = [line["loss"] for line in job.folder.metrics()]
            assert len(losses[name]) == 3 and len(set(losses[name])) == 3  # it learns: no two steps are alike
    return losses
