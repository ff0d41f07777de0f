"""The exact `deepspeed` command line of a job on this machine, and the environment that it runs in."""

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

from lartpc_ds.ds_config import precision
from lartpc_ds.errors import UserError

__all__ = ["Command", "check_devices", "default_devices", "local_command"]


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: arguments, and the variables to set (None: unset) over this process's environment."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str | None]

    def environment(self) -> dict[str, str]:
        """The whole environment of the job."""
        merged = {**os.environ, **self.variables}
        return {name: value for name, value in merged.items() if value is not None}


def default_devices() -> int:
    """Ranks when `--devices` is not given: every GPU of this machine, or one CPU rank."""
    accelerator = get_accelerator()
    return 1 if accelerator.device_name() == "cpu" else int(accelerator.device_count())


def check_devices(devices: int, ds: Mapping[str, Any]) -> None:
    """Can this machine run so many ranks of this configuration?

    Raises:
        UserError: more ranks than GPUs, fp16 on CPU, or CPU offload without a C++ compiler.
    """
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if devices < 1 or (not on_cpu and devices > accelerator.device_count()):
        most = "any number above 0" if on_cpu else f"1 to {accelerator.device_count()}"
        raise UserError(f"--devices {devices}: this machine allows {most}")
    if on_cpu and precision(ds) == "fp16":
        raise UserError(
            "torch_autocast.dtype = 'float16': fp16 needs CUDA, and this machine has none; "
            "take a ..._bf16 or ..._fp32 configuration, for example --set 'train.ds_config=\"zero2_bf16\"'"
        )
    offload = ds["zero_optimization"].get("offload_optimizer") or {}
    compiler = os.environ.get("CXX", "g++")
    if offload.get("device") == "cpu" and ds["zero_force_ds_cpu_optimizer"] and shutil.which(compiler) is None:
        raise UserError(
            "zero_optimization.offload_optimizer: DeepSpeed compiles its CPU Adam at first use and finds no C++ "
            f"compiler ({compiler}); install one (Debian: apt-get install g++), or set "
            "ds.zero_force_ds_cpu_optimizer=false and ds.optimizer.params.torch_adam=true"
        )


def local_command(mode: str, folder: Path, logs: Path, devices: int, options: Sequence[str] = ()) -> Command:
    """`deepspeed` starting `python -m lartpc_ds.worker MODE FOLDER --logs LOGS` on `devices` ranks of this machine."""
    arguments = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", os.devnull]
    accelerator = get_accelerator()
    # ranks must not find a device that this process, which checked everything, did not see
    variables: dict[str, str | None] = {"DS_ACCELERATOR": accelerator.device_name()}
    if accelerator.device_name() == "cpu":
        arguments += ["--num_gpus", str(devices)]
        # children of one job share the cores; torch would take all of them in every rank
        cores = len(os.sched_getaffinity(0))
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // devices)))
        variables["CUDA_VISIBLE_DEVICES"] = None
    else:
        # the launcher ignores CUDA_VISIBLE_DEVICES beside --num_gpus, and would take a neighbour's GPUs
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(accelerator.device_count())))
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[:devices])
    arguments += ["--master_port", str(_free_port()), "--no_local_rank", "--module", "lartpc_ds.worker"]
    return Command((*arguments, mode, str(folder), "--logs", str(logs), *options), variables)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
