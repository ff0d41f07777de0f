import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lartpc_ds import ds_config
from lartpc_ds.errors import UserError
from lartpc_ds.launch import command
from lartpc_ds.launch.command import Command, check_devices, default_devices, local_command


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, "cpu", 1)


@pytest.fixture
def on_four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, "cuda", 4)


def set_devices(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    accelerator = SimpleNamespace(device_name=lambda: name, device_count=lambda: count)
    monkeypatch.setattr(command, "get_accelerator", lambda: accelerator)


def option(found: Command, name: str) -> str:
    return found.arguments[found.arguments.index(name) + 1]


def test_the_command_starts_deepspeeds_launcher_on_our_worker(on_cpu: None) -> None:
    found = local_command("train", Path("/runs/mine"), Path("/runs/mine/logs"), 2, ["--resume"])
    assert found.arguments[:3] == (sys.executable, "-m", "deepspeed.launcher.runner")
    module = found.arguments.index("--module")
    assert found.arguments[module + 1 :] == (
        *("lartpc_ds.worker", "train", "/runs/mine", "--logs", "/runs/mine/logs"),
        "--resume",
    )
    assert "--no_local_rank" in found.arguments[:module], "typer would refuse --local_rank"
    assert option(found, "--num_gpus") == "2"
    assert option(found, "--hostfile") == os.devnull, "a hostfile of the machine is not ours"
    assert 1024 <= int(option(found, "--master_port")) < 65536


def test_ranks_on_cpu_share_the_cores(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for ranks, threads in ((1, "8"), (3, "2"), (16, "1")):
        environment = local_command("train", Path("run"), Path("logs"), ranks).environment()
        assert environment["OMP_NUM_THREADS"] == threads
        assert "CUDA_VISIBLE_DEVICES" not in environment
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert local_command("train", Path("run"), Path("logs"), 2).environment()["OMP_NUM_THREADS"] == "5"


def test_ranks_on_gpus_take_the_first_of_those_that_are_ours(
    monkeypatch: pytest.MonkeyPatch, on_four_gpus: None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = local_command("train", Path("run"), Path("logs"), 2)
    assert found.environment()["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "--num_gpus" not in found.arguments
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,6,1")
    assert local_command("train", Path("run"), Path("logs"), 3).environment()["CUDA_VISIBLE_DEVICES"] == "5,3,6"


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
    with pytest.raises(UserError, match=r"fp16 needs CUDA.*--set 'train\.ds_config=\"zero2_bf16\"'"):
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
