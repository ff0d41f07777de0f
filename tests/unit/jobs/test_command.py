import base64
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.launcher import runner

from lartpc_ds.config import ds_config
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.site import Site, here
from lartpc_ds.jobs.supervise import command
from lartpc_ds.jobs.supervise.command import (
    Command,
    check_accelerator,
    check_devices,
    command_of,
    default_devices,
    write_hostfile,
)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, "cpu", 1)


@pytest.fixture
def on_four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, "cuda", 4)


def set_devices(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    accelerator = SimpleNamespace(device_name=lambda: name, device_count=lambda: count)
    monkeypatch.setattr(command, "get_accelerator", lambda: accelerator)


def local(devices: int) -> Command:
    return command_of(here(devices), "train", Path("run"), Path("logs"))


def option(found: Command, name: str) -> str:
    return found.arguments[found.arguments.index(name) + 1]


def test_the_command_starts_deepspeeds_launcher_on_our_worker(on_cpu: None) -> None:
    found = command_of(here(2), "train", Path("/runs/mine"), Path("/runs/mine/logs"), ["--resume"])
    assert found.arguments[1:5] == ("-u", "-m", "lartpc_ds.jobs.supervise.bare", "deepspeed.launcher.launch")
    module = found.arguments.index("--module")
    started = found.arguments[module + 1 :]
    assert started[:6] == ("lartpc_ds.training.worker", "train", "/runs/mine", "--logs", "/runs/mine/logs", "--job")
    assert started[7:] == ("--resume",)
    assert "--no_local_rank" in found.arguments[:module], "typer would refuse --local_rank"
    assert json.loads(base64.urlsafe_b64decode(option(found, "--world_info"))) == {"localhost": ["0", "1"]}
    assert 1024 <= int(option(found, "--master_port")) < 65536


def test_ranks_on_cpu_see_no_gpu(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    environment = local(3).environment()
    assert environment["DS_ACCELERATOR"] == "cpu" and "CUDA_VISIBLE_DEVICES" not in environment


def test_ranks_on_gpus_take_the_first_of_those_that_are_ours(
    monkeypatch: pytest.MonkeyPatch, on_four_gpus: None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = local(2)
    assert found.environment()["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert json.loads(base64.urlsafe_b64decode(option(found, "--world_info"))) == {"localhost": ["0", "1"]}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,6,1")
    assert local(3).environment()["CUDA_VISIBLE_DEVICES"] == "5,3,6"


def test_the_environment_adds_and_unsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("GONE", "yes")
    environment = Command(("x",), {"GONE": None, "NEW": "1"}).environment()
    assert (environment["KEPT"], environment["NEW"]) == ("yes", "1")
    assert "GONE" not in environment
    assert os.environ["GONE"] == "yes"


def test_default_devices_on_cpu(on_cpu: None) -> None:
    assert default_devices() == 1


def test_default_devices_on_gpus(on_four_gpus: None) -> None:
    assert default_devices() == 4


@pytest.mark.parametrize("devices", [0, -1])
def test_a_job_has_a_rank(on_cpu: None, devices: int) -> None:
    with pytest.raises(UserError, match=rf"--devices {devices}: this machine allows any number above 0"):
        check_devices(devices, ds_config.read("zero2_bf16"))


def test_a_gpu_takes_one_rank(on_four_gpus: None) -> None:
    check_devices(4, ds_config.read("zero2_fp16"))
    with pytest.raises(UserError, match="--devices 5: this machine allows 1 to 4"):
        check_devices(5, ds_config.read("zero2_bf16"))


def test_fp16_needs_cuda_and_the_message_names_what_works(on_cpu: None) -> None:
    check_devices(16, ds_config.read("zero2_bf16"))
    with pytest.raises(UserError, match=r"fp16 needs CUDA.*--set train\.ds_config=zero0_bf16"):
        check_devices(1, ds_config.read("zero2_fp16"))


@pytest.mark.parametrize("name", ["zero2_offload_fp32", "zero3_offload_bf16"])
def test_offload_without_a_compiler_names_the_package(monkeypatch: pytest.MonkeyPatch, on_cpu: None, name: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    ds: dict[str, Any] = ds_config.read(name)
    with pytest.raises(UserError, match=r"offload_optimizer: .*C\+\+ compiler.*apt-get install g\+\+"):
        check_devices(1, ds)
    check_devices(1, ds_config.read(name.replace("_offload", "")))
    ds["zero_force_ds_cpu_optimizer"] = False  # the way out that the message names
    check_devices(1, ds)


def test_offload_with_a_compiler_passes(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    monkeypatch.setenv("CXX", "my-g++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "my-g++" else None)
    check_devices(1, ds_config.read("zero2_offload_fp32"))


HOSTS = (Host("alpha", (0, 1)), Host("beta", (0, 1)))


def on_hosts(launcher: str, hosts: tuple[Host, ...] = HOSTS, folder: str = "/runs/mine") -> Command:
    site = Site(hosts, launcher, master_addr="10.0.0.1", master_port=4711)
    return command_of(site, "train", Path(folder), Path(folder, "logs"), ["--resume"])


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi", "slurm"])
def test_on_hosts_deepspeed_is_left_nothing_to_find_out(launcher: str) -> None:
    found = on_hosts(launcher)
    assert found.arguments[:3] == (sys.executable, "-m", "deepspeed.launcher.runner")
    assert option(found, "--launcher") == launcher
    assert option(found, "--hostfile") == "/runs/mine/logs/hostfile"
    assert (option(found, "--master_addr"), option(found, "--master_port")) == ("10.0.0.1", "4711")
    assert {"--no_ssh_check", "--no_local_rank", "--force_multi"} <= {*found.arguments}
    assert found.arguments[-7:-2] == ("train", "/runs/mine", "--logs", "/runs/mine/logs", "--job")
    script = found.arguments[-8]
    assert script == "lartpc_ds.training.worker" if launcher != "slurm" else Path(script).name == "rank.py"
    assert "--include" not in found.arguments


def test_schedulers_are_told_to_fill_host_by_host(monkeypatch: pytest.MonkeyPatch) -> None:
    (mpi,) = (word for word in on_hosts("openmpi").arguments if word.startswith("--launcher_args="))
    assert mpi == "--launcher_args=--bind-to none --map-by slot"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    monkeypatch.delenv("SRUN_CPUS_PER_TASK", raising=False)
    found = on_hosts("slurm")
    (srun,) = (word for word in found.arguments if word.startswith("--launcher_args="))
    for word in ("--nodes=2", "--ntasks-per-node=2", "--nodelist=alpha,beta", "--distribution=block"):
        assert word in srun.partition("=")[2].split()
    assert found.variables == {"SRUN_CPUS_PER_TASK": "7"}


def test_devices_inside_a_host_are_deepspeeds_to_choose(tmp_path: Path) -> None:
    hosts = (Host("alpha", (1, 3)), Host("beta", (0,)))
    assert option(on_hosts("pdsh", hosts), "--include") == "alpha:1,3@beta:0"
    write_hostfile(Site(hosts, "pdsh"), tmp_path)
    lines = (tmp_path / "hostfile").read_text().splitlines()
    pool = runner._parse_hostfile(lines)
    assert runner.parse_inclusion_exclusion(pool, "alpha:1,3@beta:0", "") == {"alpha": [1, 3], "beta": [0]}


@pytest.mark.parametrize("name", ["run;rm", "$HOME", "it's", "50%n", "a&b"])
def test_what_a_shell_of_the_host_would_misread_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"over pdsh this path may have letters.*--run-dir"):
        on_hosts("pdsh", folder=f"/runs/{name}")
    on_hosts("slurm", folder=f"/runs/{name}")
    on_hosts("pdsh", folder="/runs/my run")


def test_a_current_folder_with_a_blank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/home/me/my runs")
    with pytest.raises(UserError, match=r"my runs': over pdsh this path may have letters, digits, @"):
        on_hosts("pdsh")


def test_hosts_without_gpus_cannot_take_fp16() -> None:
    check_accelerator("cuda", ds_config.read("zero2_fp16"))
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        check_accelerator("cpu", ds_config.read("zero2_fp16"))
