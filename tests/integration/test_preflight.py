"""`hostfile check` on real hosts: every fault is found, told in its own words, and beside the others."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lartpc_ds
from tests.integration.cli import Finished, wait_until
from tests.integration.hosts import Host, cluster, reset
from tests.integration.slurm_cluster import slurm, submit

pytestmark = pytest.mark.hosts

_SITE = "site"  # a folder on the ranks' PYTHONPATH, empty but where a test puts another torch

_CHECK = [sys.executable, "-m", "lartpc_ds", "hostfile", "check", "hosts", "--run-dir", "runs"]


NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    with cluster(tmp_path_factory.mktemp("hosts"), NAMES) as made:
        yield made


@pytest.fixture
def hosts(made: dict[str, Host]) -> Iterator[dict[str, Host]]:
    yield made
    reset(made)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder from which jobs start, on a file system that all hosts share."""
    work = tmp_path / "work"
    for name in ("data", "runs", _SITE):
        (work / name).mkdir(parents=True)
    (work / "data" / "a.h5").write_bytes(b"12345")
    (work / "run.toml").write_text('data.files = ["data/*.h5"]\ntrain.ds_config = "zero0_fp32"\ntrain.max_steps = 1\n')
    return work


def hostfile(*names: str) -> str:
    return "".join(f"{name} slots=1\n" for name in names)


def check(start: Host, work: Path, text: str, *options: str) -> Finished:
    """The command on a host, with the environment of a test."""
    (work / "hosts").write_text(text)
    return start.run([*_CHECK, *options], work, environment_for(work), timeout_seconds=240)


def environment_for(work: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(work / _SITE), str(Path(lartpc_ds.__file__).parents[1])])
    return {"PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def told(finished: Finished) -> dict[str, str]:
    """The sentence of each host with a problem."""
    assert finished.code == 2, finished
    names = ("this machine", *NAMES, "omega")
    lines = [line for line in finished.out.splitlines() if line.startswith(tuple(f"{name}: " for name in names))]
    return dict(line.split(": ", 1) for line in lines)


def put_other_folder(host: Host, place: Path, other: Path) -> Path:
    """On this host alone, what lies at `place` is the folder `other`, empty for now, which is returned."""
    other.mkdir()
    host.bind(other, place)
    return other


def test_hosts_that_are_well(hosts: dict[str, Host], work: Path) -> None:
    finished = check(hosts["alpha"], work, hostfile("alpha", "beta"), "--run", "run.toml")
    assert finished.code == 0, finished
    assert "a job may start: ranks meet at 10.77.0.1, port" in finished.out
    assert "every host reaches this machine at 10.77.0.1;" in finished.out
    rows = [line.split() for line in finished.out.splitlines() if line.startswith(("alpha", "beta"))]
    assert [row[0] for row in rows] == ["alpha", "beta"] and all("eth0" in row and "MB/s" in row for row in rows)
    assert list((work / "runs").iterdir()) == []
    for host in hosts.values():
        assert host.processes() == []


def test_hosts_where_nothing_can_be_started(hosts: dict[str, Host], work: Path) -> None:
    """Faults of ssh and its keys, of names and of Python, one per host, in one look."""
    hosts["beta"].stop_sshd()
    hosts["gamma"].link("down")
    (hosts["delta"].folder / "authorized_keys").write_text("")
    put_other_folder(hosts["epsilon"], Path(sys.executable).parent, work.parent / "no environment")
    addresses = (hosts["zeta"].folder / "hosts").read_text()
    (hosts["zeta"].folder / "hosts").write_text(addresses.replace("10.77.0.1 alpha", "127.0.1.1 alpha"))
    keys = {line.split(",")[0]: line for line in (hosts["alpha"].folder / "known_hosts").read_text().splitlines()}
    keys["eta"] = " ".join(["eta", *keys["alpha"].split()[1:]])
    del keys["theta"]
    (hosts["alpha"].folder / "known_hosts").write_text("".join(f"{line}\n" for line in keys.values()))
    found = told(check(hosts["alpha"], work, hostfile(*NAMES, "omega")))
    assert found.keys() == {*NAMES, "omega"} - {"alpha"}
    assert found["beta"] == "ssh: the host answers, but no sshd listens there"
    assert found["gamma"].startswith("ssh: ") and "the network to it is down" in found["gamma"]
    assert found["delta"] == "ssh: ssh asks for a password: no key of yours is accepted there"
    assert found["epsilon"] == f"python: {sys.executable} does not run there"
    assert found["zeta"] == "name: 'alpha' resolves to 127.0.1.1 there, which is that host itself"
    assert found["eta"].startswith("ssh: the host key differs from the one in known_hosts")
    assert found["theta"].startswith("ssh: its host key is not known here")
    assert found["omega"].startswith("name: the name does not resolve to an address here")


def test_hosts_that_differ_from_this_one(hosts: dict[str, Host], work: Path) -> None:
    """Versions, data, slots, clock and run folder, one fault per host, in one look."""
    other = put_other_folder(hosts["beta"], work / _SITE, work.parent / "other torch") / "torch-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Name: torch\nVersion: 1.0\n")
    put_other_folder(hosts["gamma"], work / "data", work.parent / "no data")
    hosts["epsilon"].faketime(-300)
    (put_other_folder(hosts["zeta"], work / "data", work.parent / "other data") / "a.h5").write_bytes(b"1234")
    put_other_folder(hosts["eta"], work / "runs", work.parent / "other runs")
    text = hostfile("alpha", "beta", "gamma", "epsilon", "zeta", "eta") + "delta slots=1000\n"
    found = told(check(hosts["alpha"], work, text, "--run", "run.toml"))
    assert found.keys() == {"beta", "gamma", "delta", "epsilon", "zeta", "eta"}
    assert found["beta"].startswith("versions: torch there is 1.0, here ")
    assert found["gamma"] == f"data: {work}/data/a.h5: No such file or directory"
    assert found["delta"].startswith("devices: it has ") and found["delta"].endswith("asks for 1000 slots")
    # at least so much: a busy host answers late, and the round trip is taken off
    assert re.match(r"clock: its clock is (2[89]\d|300) s behind this machine's", found["epsilon"]), found
    assert found["zeta"] == f"data: {work}/data/a.h5: 4 bytes there, 5 here"
    assert found["eta"] == f"run folder: {work}/runs: not the same folder there"


def test_hosts_that_do_not_reach_each_other(hosts: dict[str, Host], work: Path) -> None:
    """Each is well by itself, and only the all-reduce shows it."""
    hosts["beta"].check("ip", "route", "add", "unreachable", "10.77.0.3")
    found = told(check(hosts["alpha"], work, hostfile("alpha", "beta", "gamma")))
    assert found["beta"].startswith("all-reduce: it could not sum a tensor with the others over eth0")
    assert found["beta"].endswith("not all hosts reached each other within 30 s")
    for host in hosts.values():
        assert host.processes() == []


def test_inside_a_slurm_job_srun_is_the_way(hosts: dict[str, Host], work: Path) -> None:
    """No sshd runs; the second look names a host that is not in the job."""
    (work / "hosts").write_text(hostfile("alpha", "beta"))
    (work / "more").write_text(hostfile("alpha", "gamma"))
    exports = [f"export {name}={value}" for name, value in environment_for(work).items()]
    look = shlex.join([*_CHECK, "--launcher", "slurm"])
    lines = ["#!/bin/bash", *exports, f"{look}; echo code $?", f"{look.replace(' hosts ', ' more ')}; echo code $?"]
    (work / "job.sh").write_text("\n".join([*lines, ""]))
    for host in hosts.values():
        host.stop_sshd()
    alpha = hosts["alpha"]
    with slurm({name: hosts[name] for name in ("alpha", "beta")}):
        submit(alpha, work / "job.sh", "--nodes=2", "--ntasks=2", "--output=out.txt")
        out = work / "out.txt"
        wait_until(lambda: out.exists() and out.read_text().count("code ") == 2, "both looks")
    said = out.read_text()
    first, _, second = said.partition("code 0\n")
    assert "a job may start: ranks meet at 10.77.0.1, port" in first and "MB/s" in first, said
    assert "gamma: srun: the host is not in this Slurm job" in second and second.endswith("code 2\n"), said
