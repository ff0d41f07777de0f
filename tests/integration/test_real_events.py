"""The `sbnd` recipe on two real events, two ranks: the ZeRO stages are one algorithm, so their losses are equal."""

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


def test_zero_stages_give_equal_losses(tmp_path: Path, real_events: Path) -> None:
    files = f'data.files=["{real_events.resolve() / "sbnd_2events_larcv3.h5"}"]'
    losses = []
    with ExitStack() as jobs:
        running = []
        for stage in range(4):
            settings = overrides([files, *SETTINGS, f'train.ds_config="zero{stage}_fp32"'])
            name = f"zero{stage}"
            arguments = ["train", "sbnd", *settings, "--devices", "2", "--run-dir", name]
            running.append(jobs.enter_context(started(tmp_path, *arguments, run_dir=name)))
        for job in running:
            finished = job.finish()
            assert finished.code == 0, finished.out + finished.err
            assert "2 in 1 file(s)" in finished.out and "3 planes x 256 wires x 160 ticks" in finished.out
            losses.append([line["loss"] for line in job.folder.metrics()])
    assert len(losses[0]) == 3 and len(set(losses[0])) == 3  # it learns: no two steps are alike
    for stage in (1, 2, 3):
        assert losses[stage] == pytest.approx(losses[0], abs=1e-5), f"ZeRO-{stage} against ZeRO-0"
