"""The main job on real separate hosts, and what goes wrong with them while it runs."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lartpc_ds.control_point import SILENCE_SECONDS
from lartpc_ds.runlog import RunFolder
from tests.integration.cli import overrides, run_cli
from tests.integration.hosts import Host, cluster
from tests.small_runs import write_events, write_run_toml

pytestmark = pytest.mark.hosts

SGD = (
    "train.max_steps=3",
    'train.ds_config="zero2_fp32"',
    'ds.optimizer={type="SGD",params={lr=0.01,momentum=0.9}}',
    "ds.zero_allow_untested_optimizer=true",
    "data.split={train=1.0,validation=0.0}",
)
STAGE_1 = "ds.zero_optimization.stage=1"
LONG = "train.max_steps=1000000"
ENDS_WITHIN_SECONDS = SILENCE_SECONDS + 15
ENVIRONMENT = {
    "COLUMNS": "200",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multinode")
    write_run_toml(folder / "run.toml", write_events(folder / "events.h5", 40))
    (folder / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    return folder


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    with cluster(tmp_path) as made:
        yield made


def training(run_dir: str, *settings: str, launcher: str = "pdsh") -> list[str]:
    command = [sys.executable, "-m", "lartpc_ds", "train", "run.toml", *overrides(settings)]
    return [*command, "--hostfile", "hosts", "--launcher", launcher, "--run-dir", run_dir]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in RunFolder(folder).metrics() if "loss" in line]


def assert_nothing_left(hosts: dict[str, Host]) -> None:
    def left() -> list[str]:
        return [" ".join(process.info["cmdline"] or ()) for host in hosts.values() for process in host.processes()]

    deadline = time.monotonic() + 5  # DeepSpeed's launcher on the other host looks at its ranks once a second
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []


LAYOUTS = {
    "data": (),
    "tiles": ("layout.rows=2",),
    "pipe": ("layout.pipe=2", STAGE_1, "train.accumulate=2"),
}


@pytest.fixture(scope="module")
def reference(work: Path) -> Callable[[str], list[float]]:
    """Losses of two ranks on one host."""
    found: dict[str, list[float]] = {}

    def of(layout: str) -> list[float]:
        if layout not in found:
            arguments = ["train", "run.toml", *overrides([*SGD, *LAYOUTS[layout]])]
            finished = run_cli(
                work, *arguments, "--devices", "2", "--run-dir", f"one-{layout}", environment=ENVIRONMENT
            )
            assert finished.code == 0, finished.err
            found[layout] = losses(work / f"one-{layout}")
        return found[layout]

    return of


@pytest.mark.parametrize(
    ("launcher", "layout"),
    [("pdsh", "data"), ("pdsh", "tiles"), ("pdsh", "pipe"), ("openmpi", "data"), ("openmpi", "tiles")],
)
def test_two_hosts_train_as_one_does(
    hosts: dict[str, Host], work: Path, reference: Callable[[str], list[float]], launcher: str, layout: str
) -> None:
    run_dir = f"{launcher}-{layout}"
    command = training(run_dir, *SGD, *LAYOUTS[layout], launcher=launcher)
    finished = hosts["alpha"].run(command, work, ENVIRONMENT, timeout_seconds=300)
    assert finished.code == 0, finished.out + finished.err
    assert_nothing_left(hosts)
    assert losses(work / run_dir) == pytest.approx(reference(layout), rel=1e-6)
    places = json.loads((work / run_dir / "logs/ranks.json").read_text())
    assert [places[rank]["host"] for rank in ("0", "1")] == ["alpha", "beta"]
    crosses = "halos of 1 pair(s) of neighbouring tiles cross the network, alpha - beta"
    assert (crosses in finished.out) == (layout == "tiles")
